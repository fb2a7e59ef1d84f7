"""layer_norm: zero mean and unit variance per row, then gain and bias; on request with dropout and residual sum before.

Read next: `reference.py` for the maths, `composed.py` for what runs where there is no Triton kernel.
"""

from __future__ import annotations

from typing import overload

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.layer_norm import composed, reference

__all__ = ["layer_norm"]


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Shift and scale each row to zero mean and unit variance, then by `weight` and `bias`.

        s = dropout(x, dropout_p, seed) + residual          (without either: s = x)
        y[..., c] = (s[..., c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]
        mean = mean(s[..., :]),   variance = mean((s[..., :] - mean) ** 2)

    Args:
        x: activations (..., C), any floating dtype.
        weight: gain (C,), any floating dtype: float32 beside a bfloat16 `x` is the usual case.
        bias: (C,), or None for none.
        eps: added to the variance, so in the unit of `x` squared.
        residual: (..., C) in the dtype of `x`, added before the norm; None: nothing is.
        dropout_p: share of the elements of `x` that are dropped; the others are scaled by 1 / (1 - dropout_p).
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0. The same seed drops the same elements.
    Returns:
        y (..., C) in the dtype of `x`; with `residual` the pair (y, s). Mean and variance are taken in float32.
    Raises:
        ValueError: a shape, device, eps, probability or missing seed; the text shows what came.
        TypeError: a dtype that is not floating, a residual in another dtype than `x`, or a seed that is neither an int
            nor a 0-dim int64 tensor.

    Cost: reads `x` and `residual`, writes y and s, once each; about 7 operations an element: bound by memory.
    Source: Ba, Kiros and Hinton (2016), arXiv:1607.06450.

    >>> import torch
    >>> layer_norm(torch.tensor([[3.0, 5.0]]), torch.ones(2), eps=0.0)
    tensor([[-1.,  1.]])
    """
    checks.floating("x", x)
    checks.floating("weight", weight)
    checks.columns("x", x, "C")
    checks.shape("weight", weight, x.shape[-1:], "one gain per column of x")
    checks.bias(x, bias)
    if residual is not None:
        checks.shape("residual", residual, x.shape, "the shape of x")
        checks.same_dtype("x", x, residual=residual)
    checks.same_device("x", x, weight=weight, residual=residual)
    checks.not_negative("eps", eps)
    checks.dropout(dropout_p, seed)
    match dispatch.choose("layer_norm", x):
        case "fused":
            from minillm_kernels.layer_norm import fused

            y, s = fused.layer_norm(x, weight, bias, eps, residual, dropout_p, seed)
        case "reference":
            y, s = reference.layer_norm(x, weight, bias, eps, residual, dropout_p, seed)
        case _:
            y, s = composed.layer_norm(x, weight, bias, eps, residual, dropout_p, seed)
    return y if residual is None else (y, s)
