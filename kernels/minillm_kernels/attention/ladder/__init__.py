"""The ladder: attention in five small kernels, each one idea further, for whoever wants to climb to `../forward.py`.

    1  naive.py     one program a query; the scores of a row go to memory
    2  tiled.py     one program a tile of queries, products on matrix units; the scores still go to memory
    3  online.py    the online softmax: no score ever leaves the chip
    4  causal.py    tiles without hidden pairs in a loop that tests none, the longest programs first
    5  backward.py  dq, dk and dv from the weights recomputed, without atomics

Every rung takes contiguous (B, T, H, D) tensors of any length T, causal, with scale D ** -0.5 and nothing else: what
the real kernels add is bookkeeping. One script checks all of them by the same oracle, and times them on a GPU:

    python -m minillm_kernels.attention.ladder

Read next: `rows.py`, what the rungs share, then `naive.py`.
"""
