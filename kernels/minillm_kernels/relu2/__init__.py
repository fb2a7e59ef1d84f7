"""relu2: negative numbers become zero, positive ones are squared; on request with a bias before and dropout after it.

Read next: `reference.py`, then `../swiglu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.relu2 import composed, reference

__all__ = ["relu2"]


def relu2(x: Tensor, bias: Tensor | None = None, *, dropout_p: float = 0.0, seed: int | Tensor | None = None) -> Tensor:
    """Clip at zero and square, after adding `bias`.

        h = x + bias          (without bias: h = x)
        y = dropout(max(h, 0) ** 2, dropout_p, seed)

    Args:
        x: activations (..., C), any floating dtype.
        bias: (C,), added before the non-linearity, any floating dtype; None for none.
        dropout_p: share of the elements of the result that are dropped; the others are scaled by 1 / (1 - dropout_p).
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0. The same seed drops the same elements.
    Returns:
        (..., C) in the dtype of `x`; in between it is float32, but for what PyTorch's ops round on the `torch` backend.
    Raises:
        ValueError: `bias` is not (C,) or on another device, or `dropout_p` is no probability or has no seed.
        TypeError: a dtype that is not floating, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: reads `x` and writes the result once, 2 or 3 operations an element: bound by memory. With
        dropout about 11 integer operations more, each way: the kernel's backward pass draws the numbers again.
    Source: So et al. (2021), "Primer", arXiv:2109.08668.

    >>> import torch
    >>> relu2(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    """
    checks.floating("x", x)
    checks.bias(x, bias)
    checks.dropout(dropout_p, seed)
    match dispatch.choose("relu2", x):
        case "fused":
            from minillm_kernels.relu2 import fused

            return fused.relu2(x, bias, dropout_p, seed)
        case "reference":
            return reference.relu2(x, bias, dropout_p, seed)
        case _:
            return composed.relu2(x, bias, dropout_p, seed)
