r"""swiglu by hand, forward and backward.

    sigma = 1 / (1 + exp(-gate))                                 (1)
    y = drop(gate * sigma * up)                                  (2)
    drop(t) = keep * t / (1 - p), without dropout t              (3)  `../dropout/reference.py`

Backward. The derivative of (1) is sigma * (1 - sigma), so by the product rule

    d(gate * sigma) / d gate = sigma * (1 + gate * (1 - sigma))  (4)
    dgate = drop(dy) * up * (4)                                  (5)
    dup = drop(dy) * gate * sigma                                (6)

Read next: `composed.py`, then `../geglu/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype


class SwiGlu(torch.autograd.Function):
    """Equations (1) to (6), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, gate: Tensor, up: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
        wide = working_dtype(gate.dtype)
        factor = dropout_factor(gate, dropout_p, seed)
        ctx.save_for_backward(gate, up, factor)
        sigma = torch.sigmoid(gate.to(wide))  # (1)
        return drop(gate * sigma * up, factor).to(gate.dtype)  # (2)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = working_dtype(grads[0].dtype)
        gate, up, factor = ctx.saved_tensors
        dy, gate, up = drop(grads[0].to(wide), factor), gate.to(wide), up.to(wide)  # (3)
        sigma = torch.sigmoid(gate)  # (1)
        dgate = dy * up * sigma * (1 + gate * (1 - sigma))  # (4), (5)
        dup = dy * gate * sigma  # (6)
        return dgate.to(grads[0].dtype), dup.to(grads[0].dtype), None, None


def swiglu(gate: Tensor, up: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return SwiGlu.apply(gate, up, dropout_p, seed)
