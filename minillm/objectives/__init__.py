"""What is learnt from a batch: each objective prepares inputs and targets, and takes the loss of a model on them.

Read next: `config.py` and `loss.py`, then `causal_lm.py`.
"""
