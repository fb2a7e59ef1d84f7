r"""geglu by hand, forward and backward.

    y = drop(gelu(gate) * up)                    (1)  gelu and its slope: `../gelu/reference.py`
    drop(t) = keep * t / (1 - p)                 (2)  `../dropout/reference.py`; without dropout t

Backward, by the product rule:

    dgate = drop(dy) * up * gelu'(gate)          (3)
    dup = drop(dy) * gelu(gate)                  (4)

Read next: `composed.py`, then `../rotary/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.gelu.reference import gelu_forward, gelu_slope
from minillm_kernels.precision import working_dtype


class GeGlu(torch.autograd.Function):
    """Equations (1) to (4), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, approximate: str, dropout_p: float, seed: int | Tensor | None
    ) -> Tensor:
        wide = working_dtype(gate.dtype)
        factor = dropout_factor(gate, dropout_p, seed)
        ctx.save_for_backward(gate, up, factor)
        ctx.approximate = approximate
        return drop(gelu_forward(gate.to(wide), approximate) * up, factor).to(gate.dtype)  # (1)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = working_dtype(grads[0].dtype)
        gate, up, factor = ctx.saved_tensors
        dy, gate, up = drop(grads[0].to(wide), factor), gate.to(wide), up.to(wide)  # (2)
        dgate = dy * up * gelu_slope(gate, ctx.approximate)  # (3)
        dup = dy * gelu_forward(gate, ctx.approximate)  # (4)
        return dgate.to(grads[0].dtype), dup.to(grads[0].dtype), None, None, None


def geglu(gate: Tensor, up: Tensor, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return GeGlu.apply(gate, up, approximate, dropout_p, seed)
