"""The one shape in which data reaches a model. No meaning hides in another's field.

Read next: `sampler.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # the target of a place that has none


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B sequences of T tokens. Every field but `tokens` may be absent.

    tokens: (B, T) int64.
    starts: (B,) int64, first real token of each row; None: 0. With `lengths`, padding may stand on either side.
    lengths: (B,) int64, number of real tokens of each row; None: to the end of the row.
    segments: (B, T) int64, number of the document that each token belongs to; attention never crosses documents.
    positions: (B, T) int64, position of each token within its document; None: counted from `starts`.
    targets: (B, T) int64, the token to predict at each place, -100 where there is none.
    token_types: (B, T) int64, sentence A or B.
    seed: of the dropout in this batch, any int64; the trainer derives it from the run's seed and the batch's place.
    """

    tokens: Tensor
    starts: Tensor | None = None
    lengths: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    targets: Tensor | None = None
    token_types: Tensor | None = None
    seed: int | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`; the copy does not block when it comes from pinned memory."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

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
        cut = {
            f.name: value[start:stop]
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **cut)

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
