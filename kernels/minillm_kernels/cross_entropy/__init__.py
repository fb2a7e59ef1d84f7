"""cross_entropy: how surprised the logits are by the targets, in nats.

Read next: `reference.py`, `targets.py`, then `../linear_cross_entropy/__init__.py`, which needs no logits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.cross_entropy import composed, reference
from minillm_kernels.cross_entropy.targets import check_options, check_targets

__all__ = ["Reduction", "cross_entropy"]

Reduction = Literal["sum", "mean", "none"]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Take the negative log-probability of each target.

        l = softcap * tanh(logits / softcap)                 (without softcap: l = logits)
        lse = log(sum(exp(l[..., :])))
        loss = lse - (1 - label_smoothing) * l[..., target] - label_smoothing * mean(l[..., :]) + z_loss * lse ** 2

    Args:
        logits: (..., V), any floating dtype; V is 1 or more.
        targets: (...) int64, each in [0, V) or `ignore_index`.
        ignore_index: such targets have no loss and no gradient.
        label_smoothing: share of the target's probability that is spread over all V, in [0, 1); as torch defines it.
        z_loss: weight of lse ** 2, which keeps logits from drifting; at least 0.
        softcap: bound on the logits, above 0; None: none.
        reduction: "sum" over the targets, "mean" over those not ignored (0 where all are), "none": (...), 0 at ignored.
    Returns:
        float32 (float64 for float64 logits): () or the shape of `targets`, in nats.
    Raises:
        ValueError: a shape, a device or an option; a target outside of [0, V), with its position. It is looked for on
            the CPU; with MINILLM_CHECKED=1 in the environment everywhere, which waits for the device. A kernel that
            was not told to look returns NaN for it.
        TypeError: a dtype, or an `ignore_index` that is no int.

    Cost: reads the logits, once forward and once backward, and writes their gradient, with about 5 operations an
        element each way: bound by memory.
    Source: z_loss: Chowdhery et al. (2022), arXiv:2204.02311; label smoothing: Szegedy et al. (2015), arXiv:1512.00567.

    >>> cross_entropy(torch.zeros(3, 4), torch.tensor([0, 3, -100]), reduction="mean").exp()
    tensor(4.)
    """
    checks.floating("logits", logits)
    checks.columns("logits", logits, "V")
    checks.shape("targets", targets, logits.shape[:-1], "one target per row of logits")
    check_options(targets, logits.shape[-1], ignore_index, label_smoothing, z_loss, softcap, reduction)
    checks.same_device("logits", logits, targets=targets)
    if not torch.compiler.is_compiling():
        check_targets(targets, logits.shape[-1], ignore_index)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    match dispatch.choose("cross_entropy", logits):
        case "fused":
            from minillm_kernels.cross_entropy import fused

            losses = fused.cross_entropy(logits, targets, *options)
        case "reference":
            losses = reference.cross_entropy(logits, targets, *options)
        case _:
            losses = composed.cross_entropy(logits, targets, *options)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (targets != ignore_index).sum().clamp(min=1)
