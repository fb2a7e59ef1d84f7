r"""What trains of a model, and how fast: all of it, its top layers, the head alone; slower towards the bottom; step by step.

The height of a parameter, for a backbone of L blocks:

    embeddings 0     block i: i + 1     final norm L + 1     pooler, and all that is not of the backbone: L + 2

A language model's own head is used by few tasks. Its weights stand at height L + 2 for their rate, and train with the
embeddings, to which they are often tied.

    rate of a parameter = peak * layer_decay^(L + 2 - height)                             layer-wise decay
    trains at step s    : height >= lowest, or that of the head                           freezing
    lowest              = L + 2 - s // unfreeze_every - 1, not below that of the scope    gradual unfreezing

Source: the rates of Clark et al. (2020), arXiv:2003.10555, in the authors' code, whose last block stands two below the
head; gradual unfreezing of Howard and Ruder (2018), arXiv:1801.06146; fresh top layers of Zhang et al. (2021),
arXiv:2006.05987.

Read next: `adapters/__init__.py`.
"""
