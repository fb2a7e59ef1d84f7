"""What steps said about themselves while it is still on the device: read in one go, so that no step waits for it.

Read next: `deviation.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.training.deviation import pushed, z_score
from minillm.training.state import RunState

ROUNDING = 1e-5  # of a sum of float32 weights, as a share of it


class StepFigures:
    """The figures of steps that nobody has read yet.

    z: of the loss and the gradient norm of the last step that was read; see `deviation.py`.
    """

    def __init__(self) -> None:
        self.z: tuple[float | None, float | None] = (None, None)
        self._unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, count: float, figures: Tensor) -> None:
        """Take the figures of a step.

        Args:
            step: counted from 1.
            count: targets of its batch, or the sum of their weights.
            figures: (3,) float32: mean loss, gradient norm, excess of the counted targets.
        """
        self._unread.append((step, count, figures))

    def read(self, state: RunState, *, scaled: bool) -> tuple[str, int] | None:
        """Fetch all that is unread, and take it into the state of the run.

        Args:
            scaled: a scaler is at work, whose daily work it is that a gradient overflows.
        Returns:
            what was first no finite number, "the loss" or "the gradient", and at which step; None: nothing was. The
            state is then of the steps before it.
        Raises:
            ValueError: an objective counted other targets than its batch has.
        """
        if not self._unread:
            return None
        values = torch.stack([figures for *_, figures in self._unread]).tolist()
        for (step, count, _), (loss, norm, excess) in zip(self._unread, values, strict=True):
            if abs(excess) > (0 if isinstance(count, int) else ROUNDING * count):
                raise ValueError(
                    f"step {step}: the objective counted {excess:+g} targets beside those in batch.targets"
                )
            if not math.isfinite(loss):
                return "the loss", step
            if not scaled and not math.isfinite(norm):
                return "the gradient", step
            if step == self._unread[-1][0]:
                self.z = z_score(loss, state.recent_losses), z_score(norm, state.recent_norms)
            state.train_loss = loss
            pushed(state.recent_losses, loss)
            pushed(state.recent_norms, norm)
        self._unread.clear()
        return None
