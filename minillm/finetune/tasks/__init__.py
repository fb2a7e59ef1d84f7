"""What is learnt from a table: each task says what a row means, takes the loss, and reads the answers.

    protocol.py             what a task must have
    labels.py               label names <-> numbers
    texts.py                what single_label.py and its like share: K numbers a text or a pair
    tagging.py              a tag a word; tags.py has BIO and entities, words.py where words are in a text
    question_answering.py   a part of a context; answers.py has exact match and F1
    prompt_answer.py        a decoder writes the answer

Read next: `protocol.py`.
"""
