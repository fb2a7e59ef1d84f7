r"""rotary by hand, forward and backward.

For one pair of columns (a, b) at an angle t:

    a' = a * cos(t) - b * sin(t)                 (1)
    b' = a * sin(t) + b * cos(t)                 (2)  a rotation by t in the plane of the pair

Query at position m and key at position n are turned by m * f and n * f, f the pair's frequency: their dot product is
that of the unturned pairs with only the difference (m - n) * f between them                   (3)

Backward. (1) and (2) are linear with an orthogonal matrix, whose transpose is the rotation by -t:

    da = da' * cos(t) + db' * sin(t)             (4)
    db = db' * cos(t) - da' * sin(t)             (5)  (1) and (2) with sin negated: nothing of the input is needed

Read next: `composed.py`, then `../dropout/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.precision import working_dtype


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Return x (B, T, H, D) turned; cos and sin are (1 or B, T, 1, D/2)."""
    wide = working_dtype(x.dtype)
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    a, b, cos, sin = a.to(wide), b.to(wide), cos.to(wide), sin.to(wide)
    turned_a = a * cos - b * sin  # (1)
    turned_b = a * sin + b * cos  # (2)
    if interleaved:
        return torch.stack((turned_a, turned_b), dim=-1).flatten(-2).to(x.dtype)
    return torch.cat((turned_a, turned_b), dim=-1).to(x.dtype)


class Rotary(torch.autograd.Function):
    """Equations (1) to (5), in float32 for low dtypes and in float64 for float64; the tables get no gradient."""

    @staticmethod
    @own_result
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return rotate(q, cos, sin, interleaved), rotate(k, cos, sin, interleaved)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = grads
        cos, sin = ctx.saved_tensors
        backwards = (rotate(dy, cos, -sin, ctx.interleaved) for dy in (dq, dk))  # (4), (5)
        return (*backwards, None, None, None)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return q and k rotated; cos and sin are (1 or B, T, 1, D/2)."""
    turned_q, turned_k = Rotary.apply(q, k, cos, sin, interleaved)
    return turned_q, turned_k
