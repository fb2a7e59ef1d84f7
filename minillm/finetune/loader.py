r"""Sequences -> batches, padded to the longest of each; a pure function of (seed, step), so that resume is exact.

    sample g of a run  ->  epoch g // S, place g % S  ->  sequence permutation_epoch(place)      S sequences

Length buckets: the samples of M successive batches are sorted by length, cut into M batches of near lengths, and these
are taken in an order drawn anew for each such group. A sequence is still seen once an epoch (give or take a group at
its border), and a batch of 32 short texts is not padded to one long one. M is 50, or all whole batches of an epoch
where that is less: else one batch could hold a sequence several times.

Read next: `heads.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from minillm.data.batch import IGNORED, Batch
from minillm.data.sampler import mix, named, permuted
from minillm.finetune.encoding import Sequences

ORDER, GROUP, BATCH = range(100, 103)  # what a seed is mixed for; other numbers than the pretraining loader's
BATCHES_A_GROUP = 50
Varied = Callable[[NDArray[np.int64], NDArray[np.int64]], Sequences]


class SequenceLoader:
    """Training batches by step, and evaluation batches, of one split."""

    def __init__(
        self,
        sequences: Sequences,
        *,
        batch_size: int,
        pad: int | None,
        buckets: bool = True,
        varied: Varied | None = None,
        seed: int = 0,
    ) -> None:
        """Count the sequences.

        Args:
            sequences: the split.
            batch_size: rows of one optimiser step.
            pad: the token that fills rows; None: 0.
            buckets: sort by length within groups of batches.
            varied: (numbers of sequences, epoch of each) -> those sequences as training meets them in those epochs;
                None: they are always the same. Buckets go by the lengths of the sequences as they are.
            seed: of the order and of what is drawn from `Batch.seed`.
        """
        self.sequences, self.batch_size, self.pad, self.seed = sequences, batch_size, pad or 0, seed
        self.varied = varied
        self.group = max(1, min(BATCHES_A_GROUP, len(sequences) // batch_size)) if buckets else 1
        self._known: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))  # the last group and its samples

    def batch(self, step: int) -> Batch:
        """Return the rows of an optimiser step, counted from 0; of several processes each asks for all of them."""
        samples = self._samples_of(step)
        places, seed = self._sequences_of(samples), mix(self.seed, BATCH, step, 0)
        if self.varied is None:
            return collate(self.sequences, places, pad=self.pad, seed=seed)
        rows = np.arange(len(samples))
        return collate(self.varied(places, samples // len(self.sequences)), rows, pad=self.pad, seed=seed)

    def where(self, step: int) -> str:
        """Return, for a message, which sequences of the training table the rows of a step are."""
        samples = self._samples_of(step)
        epochs = np.unique(samples // len(self.sequences))
        return f"epoch {named(epochs)}, sequences {named(self._sequences_of(samples))} of the training table, from 0"

    def _samples_of(self, step: int) -> NDArray[np.int64]:
        """Return the samples of the run, (B,), that are the rows of a step."""
        group, place = divmod(step, self.group)
        if group != self._known[0]:
            self._known = group, self._batches_of(group)
        return self._known[1][place]

    def _batches_of(self, group: int) -> NDArray[np.int64]:
        """Return the samples of the run that are in each batch of a group, (M, batch_size)."""
        size = self.group * self.batch_size
        samples = np.arange(group * size, (group + 1) * size)
        if self.group == 1:
            return samples[None]
        lengths = self.sequences.lengths[self._sequences_of(samples)]
        by_length = samples[np.argsort(lengths, kind="stable")].reshape(self.group, -1)
        return by_length[permuted(np.arange(self.group), self.group, mix(self.seed, GROUP, group))]

    def _sequences_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sequences that samples of the run are."""
        S = len(self.sequences)
        epoch, place = samples // S, samples % S
        chosen = np.empty_like(samples)
        for number in np.unique(epoch).tolist():
            here = epoch == number
            chosen[here] = permuted(place[here], S, mix(self.seed, ORDER, number))
        return chosen

    def eval_batches(self, rows: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield each sequence once, `rows` at a time, as (their numbers, batch): by length, so little is padded."""
        order = np.argsort(self.sequences.lengths, kind="stable")
        for first in range(0, len(order), rows):
            places = order[first : first + rows]
            yield places, collate(self.sequences, places, pad=self.pad)


def collate(
    sequences: Sequences, places: NDArray[np.int64], *, pad: int = 0, left: bool = False, seed: int | None = None
) -> Batch:
    """Return the batch of some sequences, filled up to the longest of them.

    Args:
        places: (B,) their numbers.
        pad: the token that fills rows.
        left: pad on the left, in place of the right.
        seed: of the dropout in the batch.
    """
    starts, lengths = sequences.bounds[places], sequences.lengths[places]  # (B,)
    T = int(lengths.max())
    first = T - lengths if left else np.zeros_like(lengths)  # (B,)
    columns = np.arange(T) - first[:, None]  # (B, T): place in the sequence
    real = (columns >= 0) & (columns < lengths[:, None])
    where = np.where(real, starts[:, None] + columns, starts[:, None])  # (B, T) in the sequences' arrays

    def laid_out(values: NDArray | None, fill: int) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(np.where(real, values[where].astype(np.int64), fill))

    def chosen(values: NDArray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values[places])

    segments, positions = laid_out(sequences.segments, -1), None
    if segments is not None:
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        place = torch.arange(T).expand_as(segments)
        positions = place - place.masked_fill(~begins, 0).cummax(dim=1).values
    tokens = laid_out(sequences.tokens, pad)
    assert tokens is not None
    targets, weights = chosen(sequences.targets), chosen(sequences.weights)
    if sequences.token_targets is not None:
        targets = laid_out(sequences.token_targets, IGNORED)
    if targets is not None and weights is not None:  # as many axes as the targets have
        weights = weights.view(-1, *[1] * (targets.ndim - 1)).expand(targets.shape)
    return Batch(
        tokens=tokens,
        starts=torch.from_numpy(first) if left else None,
        lengths=None if real.all() else torch.from_numpy(lengths),
        segments=segments,
        positions=positions,
        token_types=laid_out(sequences.token_types, 0),
        targets=targets,
        weights=None if targets is None else weights,
        seed=seed,
    )
