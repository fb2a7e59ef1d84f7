r"""Batches from token shards, each a pure function of its step.

packed: windows of T tokens over all documents end to end. With the document mask attention stays inside a document,
positions count from where the document, or the window, begins, and no target is asked for across the bound:

    tokens     ... d3 d3 d3 | d4 d4 d4 d4 d4 d4 d4 | d5 ...      a window may begin and end inside a document
    segments        3  3  3    4  4  4  4  4  4  4    5
    positions       0  1  2    0  1  2  3  4  5  6    0

padded: one document a row, cut to T tokens and filled up on the chosen side.

In training every epoch begins its windows at another offset, so that a token does not always stand at the same place;
what is left over when all of them are full is skipped at the end of one epoch and at the beginning of the next.
Evaluation takes all text once, in order, without overlap: the short last window is included, and a document that is
longer than T takes several padded rows.

Read next: `../objectives/causal_lm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from minillm.data.batch import IGNORED, Batch
from minillm.data.sampler import mix, named, permuted
from minillm.data.shards import TokenStore
from minillm.errors import InputError

ORDER, PHASE, BATCH, EVALUATION = range(4)  # what a seed is mixed for


class Loader:
    """Training batches by step, and evaluation batches in order, of one split."""

    def __init__(
        self,
        store: TokenStore,
        *,
        context: int,
        batch_size: int,
        shift: bool,
        document_mask: bool = True,
        layout: Literal["packed", "padded"] = "packed",
        padding_side: Literal["right", "left"] = "right",
        pad: int | None = None,
        seed: int = 0,
    ) -> None:
        """Count the windows.

        Args:
            store: the split.
            context: T, tokens in a row.
            batch_size: rows of one optimiser step.
            shift: give the next token of each place as its target (causal LM); else batches have no targets.
            document_mask: packed: keep documents apart.
            layout, padding_side: as in `DataConfig`.
            pad: the token that fills rows; None: 0.
            seed: of the order, and of what is drawn from `Batch.seed`.
        Raises:
            InputError: the split has no token that could be a target.
        """
        self.store, self.context, self.shift = store, context, shift
        self.document_mask = document_mask and layout == "packed"
        self.layout, self.padding_side, self.pad = layout, padding_side, pad or 0
        self.batch_size, self.seed = batch_size, seed
        if len(store.tokens) < 2:
            raise InputError(f"the text has only {len(store.tokens)} tokens in one of its splits; give a longer one")
        self.num_windows = self._count_windows()

    def batch(self, step: int) -> Batch:
        """Return the rows of an optimiser step, counted from 0; of several processes each asks for all of them."""
        _, starts, stops = self._rows_of(step)
        return self._rows(starts, stops, mix(self.seed, BATCH, step, 0))  # with the 0 runs on record repeat

    def where(self, step: int) -> str:
        """Return, for a message, from which places of the token file the rows of a step come."""
        epochs, starts, _ = self._rows_of(step)
        return f"epoch {named(np.unique(epochs))}, its rows begin at tokens {named(starts)} of the training split"

    def _rows_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (epoch, start, stop) of the rows of a step, each (B,)."""
        sample = np.arange(step * self.batch_size, (step + 1) * self.batch_size)  # (B,)
        epoch, place = sample // self.num_windows, sample % self.num_windows
        starts, stops = np.empty_like(sample), np.empty_like(sample)
        for number in np.unique(epoch).tolist():
            here = epoch == number
            window = permuted(place[here], self.num_windows, mix(self.seed, ORDER, number))
            starts[here], stops[here] = self._spans(window, self._phase(number))
        return epoch, starts, stops

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all text once, `batch_size` rows at a time; the last batch may have fewer.

        With `shift` every token that has one before it, in its document where these are kept apart, is a target once.
        """
        starts, stops = self._spans_once()
        for first in range(0, len(starts), batch_size):
            last = first + batch_size
            yield self._rows(starts[first:last], stops[first:last], mix(self.seed, EVALUATION, first))

    def _count_windows(self) -> int:
        """Return the number of windows of an epoch: of those that are full at every phase, one at least."""
        if self.layout == "padded":
            return len(self.store.bounds) - 1
        places = len(self.store.tokens) - self.shift  # the last token has no next one
        return max(1, (places - self.context + 1) // self.context)

    def _spans_once(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (start, stop) of spans of T tokens at most that cover the token file once."""
        if self.layout == "packed":
            edges = np.arange(0, len(self.store.tokens) - self.shift, self.context)
            return edges, np.minimum(edges + self.context, len(self.store.tokens) - self.shift)
        bounds = self.store.bounds
        rows = -(-(np.diff(bounds) - self.shift) // self.context)  # (documents,) that each of them takes
        number = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)  # of a row within its document
        starts = np.repeat(bounds[:-1], rows) + number * self.context
        return starts, np.minimum(starts + self.context, np.repeat(bounds[1:], rows))

    def _phase(self, epoch: int) -> int:
        """Return the offset of an epoch's windows, such that all of them are full.

        It is drawn from [0, T); every second epoch lies against the end of the text, which others may never reach.
        """
        if self.layout == "padded":
            return 0
        room = max(0, len(self.store.tokens) - self.shift - self.num_windows * self.context)
        drawn_from = min(room + 1, self.context)
        return mix(self.seed, PHASE, epoch) % drawn_from + (room + 1 - drawn_from) * (epoch % 2)

    def _spans(self, windows: NDArray[np.int64], phase: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (start, stop) of windows in the token file, without the shifted targets."""
        if self.layout == "padded":
            bounds = self.store.bounds
            return bounds[windows], np.minimum(bounds[windows + 1], bounds[windows] + self.context)
        starts = phase + windows * self.context
        return starts, np.minimum(starts + self.context, len(self.store.tokens) - self.shift)

    def _rows(self, starts: NDArray[np.int64], stops: NDArray[np.int64], seed: int) -> Batch:
        """Return the batch of some spans of the token file."""
        T = self.context
        lengths = stops - starts  # (B,)
        left = self.padding_side == "left" and self.layout == "padded"
        first = T - lengths if left else np.zeros_like(lengths)
        columns = np.arange(T) - first[:, None]  # (B, T): place in the row's span; outside of it in padding
        real = (columns >= 0) & (columns < lengths[:, None])
        where = np.where(real, starts[:, None] + columns, starts[:, None])  # (B, T) in the token file
        tokens = np.where(real, self.store.tokens[where].astype(np.int64), self.pad)
        arrays: dict[str, Any] = {"tokens": tokens}
        if left:
            arrays["starts"] = first
        if not real.all():
            arrays["lengths"] = lengths
        if self.document_mask or self.shift:
            document = np.searchsorted(self.store.bounds, where, side="right") - 1  # (B, T)
            if self.document_mask:
                begin = np.maximum(self.store.bounds[document], starts[:, None])
                arrays |= {"segments": np.where(real, document, -1), "positions": np.where(real, where - begin, 0)}
            if self.shift:
                arrays["targets"] = self._targets(where, real, document)
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(**tensors, seed=seed)

    def _targets(self, where: NDArray[np.int64], real: NDArray[np.bool_], document: NDArray[np.int64]) -> NDArray:
        """Return the next tokens (B, T) int64, -100 in padding and, where documents are kept apart, at their ends."""
        following = np.minimum(where + 1, len(self.store.tokens) - 1)
        asked = real & (where + 1 < len(self.store.tokens))
        if self.document_mask or self.layout == "padded":
            asked &= following < self.store.bounds[document + 1]
        return np.where(asked, self.store.tokens[following].astype(np.int64), IGNORED)
