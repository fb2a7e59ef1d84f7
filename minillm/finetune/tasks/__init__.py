"""What is learnt from a table: each task says what a row means, takes the loss, and reads the answers.

    protocol.py      what a task must have
    labels.py        label names <-> numbers
    texts.py         what the tasks on whole texts share
    single_label.py  one of K classes
    multi_label.py   any number of K labels
    regression.py    a number
    registry.py      the tasks by the names that settings and checkpoints have for them

Read next: `protocol.py`.
"""
