"""Training recipes under measurement: this project's trainer beside transformers, in turns.

    registration.py  what a recipe and a contender are
    recipes.py       all of them, and the ladder from the maths by hand to compiled kernels
    peers.py         transformers' models in the trainer's hands
    build.py         a contender as a trainer, on random tokens
    stepper.py       the process of one contender
    work.py          bytes and operations of a step, from which the ladder is predicted
    section.py       who is started, and whose turn it is

Read next: `registration.py`.
"""
