r"""relu2 by hand, forward and backward.

    h = x + bias                                 (1)
    r = max(h, 0)^2                              (2)
    y = keep * r / (1 - p)                       (3)  `../dropout/reference.py`; without dropout y = r

Backward. The slope of (2) is 2h above 0 and 0 below; both are 0 at 0, so that nothing has to be chosen there:

    dr = keep * dy / (1 - p)                     (4)
    dx = dh = 2 * max(h, 0) * dr                 (5)
    dbias = sum over rows of dh                  (6)

Read next: `composed.py`, then `../swiglu/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype


class Relu2(torch.autograd.Function):
    """Equations (1) to (6), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
        wide = working_dtype(x.dtype)
        h = x.to(wide) if bias is None else x.to(wide) + bias.to(wide)  # (1)
        factor = dropout_factor(x, dropout_p, seed)
        ctx.save_for_backward(h, bias, factor)
        ctx.dtype = x.dtype
        return drop(h.clamp(min=0).square(), factor).to(x.dtype)  # (2), (3)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        h, bias, factor = ctx.saved_tensors
        dh = 2 * h.clamp(min=0) * drop(dy.to(h.dtype), factor)  # (4), (5)
        dbias = None if bias is None else dh.reshape(h.shape[:-1].numel(), h.shape[-1]).sum(0).to(bias.dtype)  # (6)
        return dh.to(ctx.dtype), dbias, None, None


def relu2(x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return Relu2.apply(x, bias, dropout_p, seed)
