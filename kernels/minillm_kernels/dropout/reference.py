r"""dropout by hand, forward and backward.

With keep_i = 1 where uniform(seed)_i >= p, else 0:

    y_i = keep_i * x_i / (1 - p)                 (1)
    dx_i = keep_i * dy_i / (1 - p)               (2)  (1) is linear in x

Read next: `composed.py`, then `../embedding/__init__.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.philox import uniform
from minillm_kernels.precision import working_dtype


class Dropout(torch.autograd.Function):
    """Equations (1) and (2), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int | Tensor) -> Tensor:
        factor = (uniform(seed, tuple(x.shape), x.device) >= p).to(working_dtype(x.dtype)) / (1 - p)
        ctx.save_for_backward(factor)
        return (x * factor).to(x.dtype)  # (1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        (factor,) = ctx.saved_tensors
        return (dy * factor).to(dy.dtype), None, None  # (2)


def dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """Return y; arguments as in the public function."""
    return Dropout.apply(x, p, seed)
