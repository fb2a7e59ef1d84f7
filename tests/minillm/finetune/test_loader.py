"""Batches of sequences: a pure function of the step, each sequence once an epoch, padded to the longest."""

import numpy as np
import pytest
import torch

from minillm.finetune.encoding import Sequences
from minillm.finetune.loader import SequenceLoader, collate


def sequences(count, seed=0, longest=30, **fields):
    """Sequences of random lengths whose first token is their number."""
    lengths = np.random.default_rng(seed).integers(1, longest + 1, count)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.zeros(bounds[-1], dtype=np.int32)
    tokens[bounds[:-1]] = np.arange(count)
    return Sequences(tokens=tokens, bounds=bounds, rows=np.arange(count), **fields)


def taken(loader, steps):
    """Return the numbers of the sequences of some steps."""
    return [number for step in steps for number in loader.batch(step).tokens[:, 0].tolist()]


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("count, size", [(12, 4), (64, 4), (800, 8), (7, 7)])
def test_every_sequence_comes_once_an_epoch(count, size, buckets):
    """Where groups of batches divide an epoch, exactly; the next epoch is in another order."""
    loader = SequenceLoader(sequences(count), batch_size=size, pad=0, buckets=buckets)
    steps = count // size
    assert steps % loader.group == 0
    first, second = taken(loader, range(steps)), taken(loader, range(steps, 2 * steps))
    assert sorted(first) == sorted(second) == list(range(count)) and first != second


@pytest.mark.parametrize("count, size", [(13, 4), (10, 3), (5, 8), (1, 2), (333, 8)])
def test_ragged_sets_are_seen_evenly(count, size):
    """Over many epochs all sequences come equally often, but for one group at the end."""
    loader = SequenceLoader(sequences(count), batch_size=size, pad=0)
    steps = loader.group * 40
    times = np.bincount(taken(loader, range(steps)), minlength=count)
    assert times.sum() == steps * size
    assert times.max() - times.min() <= 1


def test_a_batch_depends_on_nothing_but_the_step():
    """Asked in any order, by another loader too: the same batch; another seed, another order and other dropout."""
    first, second = (SequenceLoader(sequences(500), batch_size=8, pad=0, seed=3) for _ in range(2))
    steps = [70, 0, 69, 1, 200, 0]
    for step in steps:
        a, b = first.batch(step), second.batch(step)
        assert torch.equal(a.tokens, b.tokens) and a.seed == b.seed
    other = SequenceLoader(sequences(500), batch_size=8, pad=0, seed=4)
    assert taken(other, range(5)) != taken(first, range(5))
    plain = [SequenceLoader(sequences(500), batch_size=8, pad=0, buckets=False, seed=seed) for seed in (3, 4)]
    assert taken(plain[0], range(5)) != taken(plain[1], range(5))  # also which rows are of one batch
    assert len({loader.batch(step).seed for loader in (first, other) for step in (0, 1)}) == 4


def test_texts_that_vary_are_asked_for_by_their_number_and_epoch():
    """Over three epochs each sequence once an epoch: a batch has what was given for the two numbers."""
    data = sequences(12)

    def varied(places, epochs):
        tokens = (100 * epochs + places).astype(np.int32)
        return Sequences(tokens=tokens, bounds=np.arange(len(places) + 1), rows=np.arange(len(places)))

    loader = SequenceLoader(data, batch_size=4, pad=0, varied=varied)
    assert sorted(taken(loader, range(9))) == [100 * epoch + place for epoch in range(3) for place in range(12)]


def test_buckets_save_padding_and_mix_lengths():
    """Under 5 % of padding where batches at random have over 30 %, and no order of lengths from step to step."""

    def padding(loader):
        batches = [loader.batch(step) for step in range(40)]
        real = sum(int(b.lengths.sum()) if b.lengths is not None else b.tokens.numel() for b in batches)
        return 1 - real / sum(b.tokens.numel() for b in batches), [b.tokens.shape[1] for b in batches]

    bucketed, widths = padding(SequenceLoader(sequences(1600), batch_size=32, pad=0))
    plain, _ = padding(SequenceLoader(sequences(1600), batch_size=32, pad=0, buckets=False))
    assert bucketed < 0.05 < 0.3 < plain
    assert abs(np.corrcoef(np.arange(40), widths)[0, 1]) < 0.5


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_rows_are_what_they_were(left):
    """Tokens, types and targets of a sequence between starts and starts + lengths; padding elsewhere."""
    data = sequences(5, longest=6)
    types = np.arange(len(data.tokens)).astype(np.int8) % 2
    data = sequences(5, longest=6, token_types=types, token_targets=np.arange(len(types)))
    places = np.array([4, 0, 2])
    batch = collate(data, places, pad=9, left=left)
    assert batch.tokens.shape[1] == data.lengths[places].max()
    for row, place in enumerate(places):
        begin = 0 if batch.starts is None else int(batch.starts[row])
        here, there = slice(begin, begin + int(data.lengths[place])), slice(data.bounds[place], data.bounds[place + 1])
        assert batch.tokens[row, here].tolist() == data.tokens[there].tolist()
        assert batch.token_types[row, here].tolist() == types[there].tolist()
        assert batch.targets[row, here].tolist() == list(range(there.start, there.stop))
        outside = np.delete(np.arange(batch.tokens.shape[1]), here)
        assert (batch.tokens[row, outside] == 9).all() and (batch.targets[row, outside] == -100).all()


def test_weights_have_the_shape_of_the_targets():
    weights = np.array([0.5, 0.25], dtype=np.float32)
    batch = collate(sequences(2, targets=np.ones((2, 3), dtype=np.int64), weights=weights), np.array([1, 0]))
    assert batch.weights.tolist() == [[0.25] * 3, [0.5] * 3]


def test_evaluation_takes_each_sequence_once_shortest_first():
    data = sequences(50)
    loader = SequenceLoader(data, batch_size=4, pad=0)
    numbers = [
        (place, int(batch.tokens[row, 0]))
        for places, batch in loader.eval_batches(7)
        for row, place in enumerate(places)
    ]
    assert all(place == number for place, number in numbers)
    order = [place for place, _ in numbers]
    assert sorted(order) == list(range(50)) and np.all(np.diff(data.lengths[order]) >= 0)
