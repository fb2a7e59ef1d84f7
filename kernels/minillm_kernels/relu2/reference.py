r"""relu2 by hand, forward and backward.

    h = x + bias                                 (1)
    y = max(h, 0)^2                              (2)

Backward. The slope of (2) is 2h above 0 and 0 below; both are 0 at 0, so it is smooth:

    dx = dh = 2 * max(h, 0) * dy                 (3)
    dbias = sum over rows of dh                  (4)

Read next: `composed.py`, then `../swiglu/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand
from minillm_kernels.precision import working_dtype


class Relu2(torch.autograd.Function):
    """Equations (1) to (4), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        wide = working_dtype(x.dtype)
        h = x.to(wide) if bias is None else x.to(wide) + bias.to(wide)  # (1)
        ctx.save_for_backward(h, bias)
        ctx.dtype = x.dtype
        return h.clamp(min=0).square().to(x.dtype)  # (2)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        h, bias = ctx.saved_tensors
        dh = 2 * h.clamp(min=0) * dy.to(h.dtype)  # (3)
        dbias = None if bias is None else dh.reshape(-1, h.shape[-1]).sum(0).to(bias.dtype)  # (4)
        return dh.to(ctx.dtype), dbias


def relu2(x: Tensor, bias: Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return Relu2.apply(x, bias)
