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

from minillm_kernels.by_hand import own_result
from minillm_kernels.philox import uniform
from minillm_kernels.precision import working_dtype


def dropout_factor(x: Tensor, p: float, seed: int | Tensor | None) -> Tensor | None:
    """Return keep_i / (1 - p) for each element of x, in float32 or float64; None where nothing is dropped."""
    if p == 0 or seed is None:
        return None
    return (uniform(seed, tuple(x.shape), x.device) >= p).to(working_dtype(x.dtype)) / (1 - p)


def drop(t: Tensor, factor: Tensor | None) -> Tensor:
    """Return (1) of x, or (2) of dy: with `dropout_factor` the first or last step of other ops too."""
    return t if factor is None else t * factor


class Dropout(torch.autograd.Function):
    """Equations (1) and (2), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, x: Tensor, p: float, seed: int | Tensor) -> Tensor:
        factor = dropout_factor(x, p, seed)
        ctx.save_for_backward(factor)
        return drop(x, factor).to(x.dtype)  # (1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        (factor,) = ctx.saved_tensors
        return drop(dy, factor).to(dy.dtype), None, None  # (2)


def dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """Return y; arguments as in the public function."""
    return Dropout.apply(x, p, seed)
