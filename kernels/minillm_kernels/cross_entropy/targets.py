"""What must be true of the targets and options of both cross entropies.

Read next: `reference.py`.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from minillm_kernels import checks

CHECKED = os.environ.get("MINILLM_CHECKED") == "1"  # the checked mode: targets are looked at on every device


def check_options(
    targets: Tensor,
    num_classes: int,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    reduction: str,
) -> None:
    """Raise TypeError unless targets are int64 and ignore_index an int, ValueError for what is out of its range."""
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}; convert them first")
    if num_classes < 1:
        raise ValueError(f"V, the number of classes, must be 1 or more, got {num_classes}")
    checks.whole("ignore_index", ignore_index)
    checks.probability("label_smoothing", label_smoothing)
    checks.not_negative("z_loss", z_loss)
    checks.softcap(softcap)
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction is 'sum', 'mean' or 'none', got {reduction!r}")


def looks_at(kind: str) -> bool:
    """Return whether targets on a kind of device are looked at."""
    return kind == "cpu" or (CHECKED and kind != "meta")


def check_targets(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise ValueError for the first target that is neither in [0, num_classes) nor ignored.

    Looks at the CPU only, for elsewhere that would wait for the device; started with MINILLM_CHECKED=1, everywhere.
    """
    if not looks_at(targets.device.type) or checks.is_fake(targets):
        return
    if targets.numel():
        least, most = torch.aminmax(targets)  # a third to a half of the time of the search, which ignored targets need
        if least >= 0 and most < num_classes:
            return
    wrong = ((targets < 0) | (targets >= num_classes)) & (targets != ignore_index)
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"targets must be in [0, {num_classes}) or ignore_index ({ignore_index}), "
            f"got {int(targets[tuple(position)])} at {position}"
        )


def check_count(targets: Tensor, ignore_index: int, num_targets: int | None) -> None:
    """Raise ValueError unless so many targets are not ignored, None: nobody says; looks where `check_targets` does."""
    if num_targets is None or not looks_at(targets.device.type) or checks.is_fake(targets):
        return
    if (count := int((targets != ignore_index).sum())) != num_targets:
        raise ValueError(f"num_targets is {num_targets}, but {count} targets are not ignore_index ({ignore_index})")
