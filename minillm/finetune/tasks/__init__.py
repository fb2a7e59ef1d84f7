"""What is learnt from a table: each task says what a row means, takes the loss, and reads the answers.

    base.py                 what a task must have, and what all do alike
    labels.py               label names <-> numbers
    texts.py                what the tasks on whole texts share: K numbers a text or a pair
    single_label.py         one of K classes
    multi_label.py          any number of K labels
    regression.py           a number
    tagging.py              a tag a word; tags.py has BIO and entities, words.py where words are in a text
    question_answering.py   a part of a context; answers.py has exact match and F1
    prompt_answer.py        a decoder writes the answer
    registry.py             the tasks by the names that settings and checkpoints have for them

Read next: `base.py`.
"""
