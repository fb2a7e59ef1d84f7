"""relu: negative numbers become zero; on request with a bias before and dropout after it.

Read next: `reference.py`, then `../gelu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.relu import composed, reference

__all__ = ["relu"]


def relu(x: Tensor, bias: Tensor | None = None, *, dropout_p: float = 0.0, seed: int | Tensor | None = None) -> Tensor:
    """Clip at zero, after adding `bias`.

        h = x + bias          (without bias: h = x)
        y = dropout(max(h, 0), dropout_p, seed)

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

    Cost: reads `x` and writes the result once, 1 or 2 operations an element: bound by memory. With
        dropout about 11 integer operations more, each way: the kernel's backward pass draws the numbers again.
    Source: Nair and Hinton (2010); the non-linearity of the 2017 Transformer, arXiv:1706.03762.

    >>> import torch
    >>> relu(torch.tensor([-1.0, 3.0]))
    tensor([0., 3.])
    """
    checks.floating("x", x)
    checks.bias(x, bias)
    checks.dropout(dropout_p, seed)
    match dispatch.choose("relu", x):
        case "fused":
            from minillm_kernels.relu import fused

            return fused.relu(x, bias, dropout_p, seed)
        case "reference":
            return reference.relu(x, bias, dropout_p, seed)
        case _:
            return composed.relu(x, bias, dropout_p, seed)
