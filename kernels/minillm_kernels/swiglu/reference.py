r"""swiglu by hand, forward and backward.

    sigma = 1 / (1 + exp(-gate))                                 (1)
    y = gate * sigma * up                                        (2)

Backward. The derivative of (1) is sigma * (1 - sigma), so by the product rule

    d(gate * sigma) / d gate = sigma * (1 + gate * (1 - sigma))  (3)
    dgate = dy * up * (3)                                        (4)
    dup = dy * gate * sigma                                      (5)

Read next: `composed.py`, then `../geglu/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand
from minillm_kernels.precision import working_dtype


class SwiGlu(torch.autograd.Function):
    """Equations (1) to (5), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        wide = working_dtype(gate.dtype)
        ctx.save_for_backward(gate, up)
        sigma = torch.sigmoid(gate.to(wide))  # (1)
        return (gate * sigma * up).to(gate.dtype)  # (2)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = working_dtype(grads[0].dtype)
        dy, gate, up = (tensor.to(wide) for tensor in (*grads, *ctx.saved_tensors))
        sigma = torch.sigmoid(gate)  # (1)
        dgate = dy * up * sigma * (1 + gate * (1 - sigma))  # (3), (4)
        dup = dy * gate * sigma  # (5)
        return dgate.to(grads[0].dtype), dup.to(grads[0].dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return SwiGlu.apply(gate, up)
