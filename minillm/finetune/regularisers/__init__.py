"""What stands around a task's loss in training: each is an `Objective` made of another one, and no trainer knows it.

    r_drop.py        two passes with different dropout must agree
    adversarial.py   FGM and PGD: the loss at the worst small shift of the embedding output
    config.py        their settings, and which of them stand around which

Outside of training, where no gradient is asked for, each is the objective that it stands around.

Read next: `r_drop.py`.
"""
