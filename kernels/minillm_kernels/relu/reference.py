r"""relu by hand, forward and backward.

    h = x + bias                                 (1)
    r = max(h, 0)                                (2)
    y = keep * r / (1 - p)                       (3)  `../dropout/reference.py`; without dropout y = r

Backward. The slope of (2) is 1 above 0 and 0 below; at 0, where it has none, it is taken as 0:

    dr = keep * dy / (1 - p)                     (4)
    dx = dh = dr where h > 0, else 0             (5)
    dbias = sum over rows of dh                  (6)

Read next: `composed.py`, then `../gelu/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype


class Relu(torch.autograd.Function):
    """Equations (1) to (6), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
        wide = working_dtype(x.dtype)
        h = x.to(wide) if bias is None else x.to(wide) + bias.to(wide)  # (1)
        factor = dropout_factor(x, dropout_p, seed)
        ctx.save_for_backward(h, bias, factor)
        ctx.dtype = x.dtype
        return drop(h.clamp(min=0), factor).to(x.dtype)  # (2), (3)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        h, bias, factor = ctx.saved_tensors
        dh = torch.where(h > 0, drop(dy.to(h.dtype), factor), 0.0)  # (4), (5)
        dbias = None if bias is None else dh.reshape(h.shape[:-1].numel(), h.shape[-1]).sum(0).to(bias.dtype)  # (6)
        return dh.to(ctx.dtype), dbias, None, None


def relu(x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return Relu.apply(x, bias, dropout_p, seed)
