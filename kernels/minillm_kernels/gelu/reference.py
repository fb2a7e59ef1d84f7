r"""gelu by hand, forward and backward.

    h = x + bias                                                 (1)
    Phi(h) = (1 + erf(h / sqrt(2))) / 2                          (2)  normal distribution function
    g = h * Phi(h)                                               (3)

Backward. The derivative of (2) is the normal density phi(h) = exp(-h^2 / 2) / sqrt(2 pi), so by the product rule on (3)

    dg/dh = Phi(h) + h * phi(h)                                  (4)

The tanh approximation, with a = sqrt(2 / pi) and b = 0.044715:

    t = tanh(a * (h + b * h^3))                                  (5)
    g = h * (1 + t) / 2                                          (6)
    dg/dh = (1 + t) / 2 + h * (1 - t^2) / 2 * a * (1 + 3b * h^2) (7)  by the product rule, tanh' = 1 - tanh^2

Either way, with dropout (`../dropout/reference.py`; without it y = g)

    y = keep * g / (1 - p)                                       (8)
    dg = keep * dy / (1 - p)                                     (9)
    dx = dh = dg * dg/dh                                         (10)
    dbias = sum over rows of dh                                  (11)

Read next: `composed.py`, then `../relu2/reference.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype

A = math.sqrt(2 / math.pi)
B = 0.044715


def gelu_forward(h: Tensor, approximate: str) -> Tensor:
    """Return g, shape and dtype of h."""
    if approximate == "none":
        return h * (1 + torch.erf(h / math.sqrt(2))) / 2  # (2), (3)
    return h * (1 + torch.tanh(A * (h + B * h**3))) / 2  # (5), (6)


def gelu_slope(h: Tensor, approximate: str) -> Tensor:
    """Return dg/dh, shape and dtype of h."""
    if approximate == "none":
        density = torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi)
        return (1 + torch.erf(h / math.sqrt(2))) / 2 + h * density  # (4)
    t = torch.tanh(A * (h + B * h**3))  # (5)
    return (1 + t) / 2 + h * (1 - t.square()) / 2 * A * (1 + 3 * B * h.square())  # (7)


class Gelu(torch.autograd.Function):
    """Equations (1) to (11), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, approximate: str, dropout_p: float, seed: int | Tensor | None
    ) -> Tensor:
        wide = working_dtype(x.dtype)
        h = x.to(wide) if bias is None else x.to(wide) + bias.to(wide)  # (1)
        factor = dropout_factor(x, dropout_p, seed)
        ctx.save_for_backward(h, bias, factor)
        ctx.dtype = x.dtype
        ctx.approximate = approximate
        return drop(gelu_forward(h, approximate), factor).to(x.dtype)  # (8)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        h, bias, factor = ctx.saved_tensors
        dh = drop(dy.to(h.dtype), factor) * gelu_slope(h, ctx.approximate)  # (9), (10)
        dbias = None if bias is None else dh.reshape(h.shape[:-1].numel(), h.shape[-1]).sum(0).to(bias.dtype)  # (11)
        return dh.to(ctx.dtype), dbias, None, None, None


def gelu(x: Tensor, bias: Tensor | None, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return Gelu.apply(x, bias, approximate, dropout_p, seed)
