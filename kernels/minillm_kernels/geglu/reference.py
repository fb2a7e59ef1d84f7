r"""geglu by hand, forward and backward.

    y = gelu(gate) * up                          (1)  gelu and its slope: `../gelu/reference.py`

Backward, by the product rule:

    dgate = dy * up * gelu'(gate)                (2)
    dup = dy * gelu(gate)                        (3)

Read next: `composed.py`, then `../rotary/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand
from minillm_kernels.gelu.reference import gelu_forward, gelu_slope
from minillm_kernels.precision import working_dtype


class GeGlu(torch.autograd.Function):
    """Equations (1) to (3), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, approximate: str) -> Tensor:
        wide = working_dtype(gate.dtype)
        ctx.save_for_backward(gate, up)
        ctx.approximate = approximate
        return (gelu_forward(gate.to(wide), approximate) * up).to(gate.dtype)  # (1)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = working_dtype(grads[0].dtype)
        dy, gate, up = (tensor.to(wide) for tensor in (*grads, *ctx.saved_tensors))
        dgate = dy * up * gelu_slope(gate, ctx.approximate)  # (2)
        dup = dy * gelu_forward(gate, ctx.approximate)  # (3)
        return dgate.to(grads[0].dtype), dup.to(grads[0].dtype), None


def geglu(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return GeGlu.apply(gate, up, approximate)
