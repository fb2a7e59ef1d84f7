"""The `torch` backend of linear_cross_entropy: what is done with one chunk's logits.

Read next: `fused.py`, the same in one kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_kernels.cross_entropy.reference import Options
from minillm_kernels.precision import working_dtype


def losses_and_dlogits(
    logits: Tensor, targets: Tensor, g: Tensor | None, options: Options, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return losses (R,) and their gradient in the logits (R, V); under a cap float32 logits are written over.

    Equation numbers: `../cross_entropy/reference.py`.

    Args:
        logits, targets: (R, V), (R,), none of them ignored.
        g: (R,) upstream gradients; None: ones.
        gradient: whether there is any use for the gradient; else the second result means nothing.
    """
    _, smoothing, z_loss, softcap = options
    l = logits.to(working_dtype(logits.dtype))  # noqa: E741
    slope = None
    if softcap is not None:
        l.div_(softcap).tanh_()
        slope = 1 - l.square() if gradient else None  # (8)
        l.mul_(softcap)  # (1)
    index = targets[:, None]  # (R, 1)
    losses = (smoothing - 1) * l.gather(1, index)[:, 0]
    if smoothing > 0:
        losses -= smoothing * l.mean(1)
    # PyTorch's softmax is one kernel, exponentials and sum apart are three: 0.80 to 0.98 of this function's time for 65
    # and 8,192 classes in float32 and bfloat16 (two cores of an AMD EPYC).
    p = torch.softmax(l, 1)  # (3)
    # (2) from the largest logit m, whose p is exp(m - lse), and at least 1 / V
    lse = l.amax(1, keepdim=True) - p.amax(1, keepdim=True).log_()  # (R, 1)
    losses += (lse + z_loss * lse.square())[:, 0]  # (5)
    if gradient:
        if z_loss > 0:
            p.mul_(1 + 2 * z_loss * lse)  # first term of (7)
        if smoothing > 0:
            p.sub_(smoothing / l.shape[1])
        p.scatter_add_(1, index, torch.full_like(lse, smoothing - 1))  # second term of (7)
        if slope is not None:
            p.mul_(slope)
        if g is not None:
            p.mul_(g[:, None])  # (9)
    del l, slope  # `rows_per_chunk` counts on them being gone before the gradient is converted
    # float16 would flush small gradients to 0: a GradScaler's factor is in the upstream gradient, which comes too late.
    return losses, p if logits.dtype == torch.float16 else p.to(logits.dtype)
