"""The batch: every field is split, cut and moved alike."""

import dataclasses

import pytest
import torch

from minillm.data.batch import IGNORED, Batch


def full(B=6, T=4):
    """A batch with all fields, all rows distinct."""
    grids = {
        name: torch.arange(B * T).view(B, T) for name in ("tokens", "segments", "positions", "targets", "token_types")
    }
    weights = torch.arange(B * T).view(B, T) / 7
    return Batch(**grids, weights=weights, starts=torch.arange(B), lengths=torch.arange(B), seed=100)


TENSORS = [f.name for f in dataclasses.fields(Batch) if f.name not in ("seed", "num_targets")]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_micro_batches_are_the_rows_in_order(parts):
    """Put together again they are the batch, in every field; each has a seed of its own."""
    split = full().split(parts)
    for name in TENSORS:
        assert torch.equal(torch.cat([getattr(part, name) for part in split]), getattr(full(), name)), name
    assert [part.seed for part in split] == list(range(100, 100 + parts))


@pytest.mark.parametrize("parts", [0, 4, 5, 7])
def test_unequal_micro_batches_are_refused(parts):
    """The text says how many rows there are."""
    with pytest.raises(ValueError, match="6 rows"):
        full().split(parts)


def test_rows():
    """A slice of every field, short at the end; the seed stays."""
    cut = full().rows(4, 9)
    for name in TENSORS:
        assert torch.equal(getattr(cut, name), getattr(full(), name)[4:]), name
    assert cut.seed == 100


def test_absent_fields_stay_absent():
    """Splitting and moving make nothing up."""
    bare = Batch(tokens=torch.zeros(2, 3, dtype=torch.int64))
    for batch in (*bare.split(2), bare.rows(0, 1), bare.to("cpu")):
        assert [name for name in TENSORS if getattr(batch, name) is not None] == ["tokens"]
        assert batch.seed is None and batch.num_targets is None


@pytest.mark.parametrize(
    "targets, number",
    [
        pytest.param(torch.tensor([[1, IGNORED, 0], [2, 2, IGNORED]]), 4, id="tokens"),
        pytest.param(torch.tensor([1.5, float("nan")]), 1, id="numbers"),
        pytest.param(torch.tensor([IGNORED, IGNORED]), 0, id="none"),
    ],
)
def test_targets_are_counted_on_the_way_to_the_device(targets, number):
    """And a part of the batch does not keep the number of the whole."""
    moved = Batch(tokens=torch.zeros(2, 3, dtype=torch.int64), targets=targets).to("meta")
    assert moved.num_targets == moved.to("meta").num_targets == number
    assert moved.rows(0, 1).num_targets is None and all(part.num_targets is None for part in moved.split(2))


def test_a_gpu_copies_pinned_memory_by_itself(monkeypatch):
    """Without a GPU there is no such memory: what is asked for is recorded."""
    pinned: list[torch.Tensor] = []
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: asked.append((self, args, kwargs)) or self)
    batch = full()
    batch.to("cuda")
    assert [id(t) for t in pinned] == [id(getattr(batch, name)) for name in TENSORS]
    assert [id(t) for t, *_ in asked] == [id(t) for t in pinned]
    assert all((args, kwargs) == ((torch.device("cuda"),), {"non_blocking": True}) for _, args, kwargs in asked)


def test_to_moves_every_tensor():
    """All tensors are on the device, the seed is what it was."""
    moved = full().to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.seed == 100


@pytest.mark.parametrize("starts", [None, [0, 2, 3, 4]], ids=["from the first column", "padded on the left"])
@pytest.mark.parametrize("lengths", [None, [4, 2, 0, 1]], ids=["to the last column", "padded on the right"])
def test_real_tokens_stand_from_the_start_on_for_the_length(starts, lengths):
    """By hand, row by row, padding on either side or on both."""
    first, length = starts or [0] * 4, lengths or [5] * 4
    wanted = [[a <= column < a + n for column in range(5)] for a, n in zip(first, length, strict=True)]
    given = {name: torch.tensor(rows) for name, rows in (("starts", starts), ("lengths", lengths)) if rows is not None}
    batch = Batch(tokens=torch.zeros(4, 5, dtype=torch.int64), **given)
    assert batch.real().tolist() == wanted


def test_model_inputs_are_all_that_a_model_takes():
    """All fields but tokens, targets and weights, by their names."""
    assert full().model_inputs().keys() == {*TENSORS, "seed"} - {"tokens", "targets", "weights"}


@pytest.mark.parametrize("seed", [0, 100, 2**63 - 1, -(2**63)])
def test_a_model_gets_the_seed_as_a_tensor(seed):
    """Any int64 to the last bit."""
    found = dataclasses.replace(full(), seed=seed).model_inputs()["seed"]
    assert found.dtype == torch.int64 and found.shape == () and found.item() == seed
    assert dataclasses.replace(full(), seed=None).model_inputs()["seed"] is None
