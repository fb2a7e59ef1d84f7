"""What is learnt from a table: each task says what a row means, takes the loss, and reads the answers.

    protocol.py   what a task must have
    labels.py     label names <-> numbers

Read next: `protocol.py`.
"""
