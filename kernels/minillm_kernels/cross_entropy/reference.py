r"""cross_entropy by hand, forward and backward.

For one row of logits x over V classes, target t, smoothing a, z-loss weight z, cap c:

    l_v = c * tanh(x_v / c)                      (1)  without a cap l = x
    lse = m + log(sum_v exp(l_v - m))            (2)  m = max(l): no exponential overflows
    p_v = exp(l_v - lse)                         (3)  the probabilities
    loss = -sum_v q_v * log(p_v) + z * lse^2     (4)  q_v = (1 - a) * [v = t] + a / V
         = lse - (1 - a) * l_t - a * mean(l) + z * lse^2                         (5)  as sum_v q_v = 1

Backward, with the upstream gradient g of this row's loss:

    d lse / d l_v = p_v                          (6)  from (2)
    d loss / d l_v = p_v * (1 + 2 * z * lse) - q_v                               (7)  from (5) and (6)
    d l_v / d x_v = 1 - (l_v / c)^2              (8)  tanh' = 1 - tanh^2
    dx_v = g * (7) * (8)                         (9)

Ignored rows have loss 0 and gradient 0.

Read next: `composed.py`, then `../linear_cross_entropy/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.precision import working_dtype

Options = tuple[int, float, float, float | None]  # ignore_index, label_smoothing, z_loss, softcap


def cross_entropy_forward(x: Tensor, targets: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return losses (...) and lse (...) of logits x (..., V) in their working dtype."""
    ignore_index, smoothing, z_loss, softcap = options
    l = x if softcap is None else softcap * torch.tanh(x / softcap)  # (1)  # noqa: E741
    m = l.max(-1, keepdim=True).values  # (..., 1)
    lse = (m + (l - m).exp().sum(-1, keepdim=True).log())[..., 0]  # (2), (...)
    kept = targets != ignore_index
    l_t = l.gather(-1, torch.where(kept, targets, 0)[..., None])[..., 0]
    spread = smoothing * l.mean(-1) if smoothing > 0 else 0.0  # 0 * -inf, of a class that is masked out, is NaN
    losses = lse - (1 - smoothing) * l_t - spread + z_loss * lse.square()  # (5)
    return torch.where(kept, losses, 0.0), lse


def cross_entropy_backward(g: Tensor, x: Tensor, targets: Tensor, lse: Tensor, options: Options) -> Tensor:
    """Return dx (..., V) for the upstream gradients g (...); all in one working dtype."""
    ignore_index, smoothing, z_loss, softcap = options
    V = x.shape[-1]
    l = x if softcap is None else softcap * torch.tanh(x / softcap)  # (1)  # noqa: E741
    p = (l - lse[..., None]).exp()  # (3)
    kept = targets != ignore_index
    q = torch.full_like(l, smoothing / V)  # (4)
    q.scatter_add_(-1, torch.where(kept, targets, 0)[..., None], torch.full_like(l[..., :1], 1 - smoothing))
    dl = p * (1 + 2 * z_loss * lse)[..., None] - q  # (7)
    slope = 1 if softcap is None else 1 - (l / softcap).square()  # (8)
    return torch.where(kept[..., None], g[..., None] * dl * slope, 0.0)  # (9)


class CrossEntropy(torch.autograd.Function):
    """Equations (1) to (9), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, logits: Tensor, targets: Tensor, options: Options) -> Tensor:
        losses, lse = cross_entropy_forward(logits.to(working_dtype(logits.dtype)), targets, options)
        ctx.save_for_backward(logits, targets, lse)
        ctx.options = options
        return losses

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, lse = ctx.saved_tensors
        dx = cross_entropy_backward(grads[0], logits.to(lse.dtype), targets, lse, ctx.options)
        return dx.to(logits.dtype), None, None


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> Tensor:
    """Return the losses, in the shape of targets, 0 where ignored; arguments as in the public function."""
    return CrossEntropy.apply(logits, targets, (ignore_index, label_smoothing, z_loss, softcap))
