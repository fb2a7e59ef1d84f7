"""gelu: each number times the normal distribution function of it; on request with a bias before and dropout after it.

Read next: `reference.py`, then `../relu2/__init__.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.gelu import composed, reference

__all__ = ["gelu"]


def gelu(
    x: Tensor,
    bias: Tensor | None = None,
    approximate: Literal["none", "tanh"] = "none",
    *,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Weigh each number by the normal distribution function, after adding `bias`.

        h = x + bias          (without bias: h = x)
        g = h * Phi(h),   Phi(h) = (1 + erf(h / sqrt(2))) / 2                                   approximate="none"
        g = h * (1 + tanh(sqrt(2 / pi) * (h + 0.044715 * h ** 3))) / 2                         approximate="tanh"
        y = dropout(g, dropout_p, seed)

    Args:
        x: activations (..., C), any floating dtype.
        bias: (C,), added before the non-linearity, any floating dtype; None for none.
        approximate: "none" is the definition (BERT, ModernBERT); "tanh" the approximation of GPT-2, at most 5e-4 away.
        dropout_p: share of the elements of the result that are dropped; the others are scaled by 1 / (1 - dropout_p).
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0. The same seed drops the same elements.
    Returns:
        (..., C) in the dtype of `x`; in between it is float32, but for what PyTorch's ops round on the `torch` backend.
    Raises:
        ValueError: `bias` is not (C,) or on another device, `approximate` is another word, or `dropout_p` is no
            probability or has no seed.
        TypeError: a dtype that is not floating, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: reads `x` and writes the result once, some 15 operations an element: bound by memory. With
        dropout about 11 integer operations more, each way: the kernel's backward pass draws the numbers again.
    Source: Hendrycks and Gimpel (2016), arXiv:1606.08415.

    >>> import torch
    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    checks.floating("x", x)
    checks.bias(x, bias)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is 'none' or 'tanh', got {approximate!r}")
    checks.dropout(dropout_p, seed)
    match dispatch.choose("gelu", x):
        case "fused":
            from minillm_kernels.gelu import fused

            return fused.gelu(x, bias, approximate, dropout_p, seed)
        case "reference":
            return reference.gelu(x, bias, approximate, dropout_p, seed)
        case _:
            return composed.gelu(x, bias, approximate, dropout_p, seed)
