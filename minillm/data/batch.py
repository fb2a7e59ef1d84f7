"""The one shape in which data reaches a model. No meaning hides in another's field.

Read next: `sampler.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # the target of a place that has none


def has_target(targets: Tensor) -> Tensor:
    """Return a mask in the shape of `targets`: integers have none at -100, floating-point values at NaN.

    >>> has_target(torch.tensor([3, IGNORED]))
    tensor([ True, False])
    """
    return ~targets.isnan() if targets.is_floating_point() else targets != IGNORED


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B sequences of T tokens. Every field but `tokens` may be absent.

    tokens: (B, T) int64.
    starts: (B,) int64, first real token of each row; None: 0. With `lengths`, padding may stand on either side.
    lengths: (B,) int64, number of real tokens of each row; None: to the end of the row.
    segments: (B, T) int64, number of the document that each token belongs to; attention never crosses documents.
    positions: (B, T) int64, position of each token within its document; None: counted from `starts`.
    targets: what to predict. (B, T) int64: the token or class of each place; (B,) int64: the class of each row; (B, K)
        int64: K yes-or-no answers a row, or K places in it; each -100 where there is none. (B,) float32: a number a
        row, NaN where there is none.
    weights: in the shape of `targets`, float32: how much each target counts; None: 1.
    token_types: (B, T) int64, sentence A or B.
    num_targets: how many of `targets` there are, -100 and NaN not among them, where it is known without a look at the
        device; `to` counts them on the way there. None: nobody has counted, as after other targets were put in place.
    seed: of the dropout in this batch, any int64; the trainer derives it from the run's seed and the batch's place.
    """

    tokens: Tensor
    starts: Tensor | None = None
    lengths: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    token_types: Tensor | None = None
    num_targets: int | None = None
    seed: int | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`. Neither the copy nor, later, its targets' number waits for a GPU's work so far.

        A GPU reads pinned memory by itself; of other memory a copy begins when all that was asked of it is done.
        """
        device, moved = torch.device(device), self._tensors()
        if device.type == "cuda":
            moved = {name: value.pin_memory() if value.device.type == "cpu" else value for name, value in moved.items()}
        moved = {name: value.to(device, non_blocking=True) for name, value in moved.items()}
        number = self.num_targets
        if number is None and self.targets is not None and self.targets.device.type == "cpu":
            number = int(has_target(self.targets).sum())
        return dataclasses.replace(self, **moved, num_targets=number)

    def split(self, parts: int) -> list[Batch]:
        """Return `parts` micro-batches of equal row counts, in order; each gets a seed of its own.

        Raises:
            ValueError: if `parts` does not divide the number of rows.
        """
        B = self.tokens.shape[0]
        if parts < 1 or B % parts:
            raise ValueError(f"cannot split {B} rows into {parts} equal micro-batches; choose a divisor of {B}")
        rows = B // parts
        return [
            dataclasses.replace(
                self.rows(part * rows, (part + 1) * rows), seed=None if self.seed is None else self.seed + part
            )
            for part in range(parts)
        ]

    def rows(self, start: int, stop: int) -> Batch:
        """Return the sequences start .. stop - 1 of the batch, as many of them as there are; the seed stays."""
        cut = {name: value[start:stop] for name, value in self._tensors().items()}
        return dataclasses.replace(self, **cut, num_targets=None)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, without those that are absent."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def real(self) -> Tensor:
        """Return (B, T) bool: false at padding."""
        B, T = self.tokens.shape
        columns = torch.arange(T, device=self.tokens.device)
        start = self.tokens.new_zeros(B, 1) if self.starts is None else self.starts[:, None]
        stop = T if self.lengths is None else start + self.lengths[:, None]
        return (columns >= start) & (columns < stop)

    def model_inputs(self) -> dict[str, Tensor | None]:
        """Return what the model takes beside `tokens`, by the names of its arguments.

        The seed goes as a () int64 tensor on the device: torch.compile would compile the model anew for every number.
        """
        device = self.tokens.device
        return {
            "starts": self.starts,
            "lengths": self.lengths,
            "segments": self.segments,
            "positions": self.positions,
            "token_types": self.token_types,
            "seed": None if self.seed is None else torch.full((), self.seed, dtype=torch.int64, device=device),
        }
