"""Batches: fields right at every bound, each token asked for once, and each step the same whoever asks when."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.batch import IGNORED
from minillm.data.loader import Loader
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model

# Documents whose tokens are all different: 100 d + place, so that a token says where it stands.
DOCUMENTS = st.lists(st.integers(1, 12), min_size=1, max_size=6).map(
    lambda sizes: [[100 * d + place for place in range(size)] for d, size in enumerate(sizes)]
)
LAYOUTS = [
    pytest.param({"layout": "packed"}, id="packed"),
    pytest.param({"layout": "packed", "document_mask": False}, id="packed, no mask"),
    pytest.param({"layout": "padded"}, id="padded right"),
    pytest.param({"layout": "padded", "padding_side": "left"}, id="padded left"),
]


def make(store, **changed):
    """A loader of rows of 4 tokens, 2 rows a batch, with shifted targets."""
    return Loader(store, **{"context": 4, "batch_size": 2, "shift": True, "pad": 9999} | changed)


def real(batch):
    """(B, T) bool: no padding."""
    B, T = batch.tokens.shape
    starts = torch.zeros(B, dtype=torch.int64) if batch.starts is None else batch.starts
    stops = torch.full((B,), T) if batch.lengths is None else starts + batch.lengths
    columns = torch.arange(T)
    return (columns >= starts[:, None]) & (columns < stops[:, None])


@pytest.mark.parametrize("layout", LAYOUTS)
@given(documents=DOCUMENTS, context=st.integers(1, 7), rows=st.integers(1, 3))
def test_evaluation_asks_for_every_token_once(store_of, layout, documents, context, rows):
    """Exactly once: each token that has one before it, in its document or, without a mask, in the text."""
    store = store_of(documents)
    if len(store.tokens) < 2:
        return
    loader = make(store, context=context, **layout)
    asked = collections.Counter()
    for batch in loader.eval_batches(rows):
        assert batch.tokens.shape[1] == context and 1 <= len(batch.tokens) <= rows
        there = batch.targets != IGNORED
        assert not (there & ~real(batch)).any()
        assert torch.equal(batch.targets[there], batch.tokens[there] + 1) or layout.get("document_mask") is False
        asked.update(batch.targets[there].tolist())
    together = [token for document in documents for token in document]
    expected = together[1:] if layout.get("document_mask") is False else [t for d in documents for t in d[1:]]
    assert asked == collections.Counter(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(documents=DOCUMENTS, context=st.integers(1, 7))
def test_evaluation_shows_every_token_once(store_of, layout, documents, context):
    """Without shifted targets (masked LM) the rows end to end are the text, and no row has targets."""
    store = store_of(documents)
    if len(store.tokens) < 2:
        return
    batches = list(make(store, context=context, shift=False, **layout).eval_batches(3))
    shown = [token for batch in batches for token in batch.tokens[real(batch)].tolist()]
    assert shown == store.tokens.tolist()
    assert all(batch.targets is None for batch in batches)


def test_packed_fields(store_of):
    """By hand: windows of 4 over documents of 3, 5 and 2 tokens."""
    loader = make(store_of([[1, 2, 3], [11, 12, 13, 14, 15], [21, 22]]))
    first, second = loader.eval_batches(2)
    assert first.tokens.tolist() == [[1, 2, 3, 11], [12, 13, 14, 15]]
    assert first.segments.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert first.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]  # from where the document, or the window, begins
    assert first.targets.tolist() == [[2, 3, IGNORED, 12], [13, 14, 15, IGNORED]]
    assert first.lengths is None and first.starts is None
    assert second.tokens.tolist() == [[21, 9999, 9999, 9999]]  # the last token is a target alone
    assert second.segments.tolist() == [[2, -1, -1, -1]]
    assert second.positions.tolist() == [[0, 0, 0, 0]]
    assert second.targets.tolist() == [[22, IGNORED, IGNORED, IGNORED]]
    assert second.lengths.tolist() == [1]


def test_packed_fields_without_a_mask(store_of):
    """One text: targets cross documents, and nothing says where they are."""
    (batch,) = make(store_of([[1, 2, 3], [11, 12]]), document_mask=False).eval_batches(2)
    assert batch.tokens.tolist() == [[1, 2, 3, 11]]
    assert batch.targets.tolist() == [[2, 3, 11, 12]]
    assert batch.segments is None and batch.positions is None and batch.lengths is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_fields(store_of, side):
    """By hand, both sides: short documents are filled up; a long one takes several rows in evaluation."""
    loader = make(store_of([[1, 2, 3], [11, 12, 13, 14, 15, 16]]), layout="padded", padding_side=side)
    batch, rest = loader.eval_batches(2)
    pad, none = 9999, IGNORED
    if side == "right":
        assert batch.tokens.tolist() == [[1, 2, 3, pad], [11, 12, 13, 14]]
        assert batch.targets.tolist() == [[2, 3, none, none], [12, 13, 14, 15]]
        assert batch.starts is None and batch.lengths.tolist() == [3, 4]
        assert rest.tokens.tolist() == [[15, 16, pad, pad]] and rest.targets.tolist() == [[16, none, none, none]]
    else:
        assert batch.tokens.tolist() == [[pad, 1, 2, 3], [11, 12, 13, 14]]
        assert batch.targets.tolist() == [[none, 2, 3, none], [12, 13, 14, 15]]
        assert batch.starts.tolist() == [1, 0] and batch.lengths.tolist() == [3, 4]
        assert rest.tokens.tolist() == [[pad, pad, 15, 16]] and rest.targets.tolist() == [[none, none, 16, none]]
    assert batch.segments is None and batch.positions is None


def test_padded_training_cuts_long_documents(store_of):
    """In training a document is one row, its first T tokens."""
    loader = make(store_of([[1, 2, 3], [11, 12, 13, 14, 15, 16]]), layout="padded")
    assert sorted(map(tuple, loader.batch(0).tokens.tolist())) == [(1, 2, 3, 9999), (11, 12, 13, 14)]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(documents=DOCUMENTS, context=st.integers(1, 5), batch_size=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_a_training_epoch_is_without_replacement(store_of, layout, documents, context, batch_size, seed):
    """The first n samples are n different windows; packed ones do not overlap."""
    store = store_of(documents)
    if len(store.tokens) < 2:
        return
    loader = make(store, context=context, batch_size=batch_size, seed=seed, **layout)
    batches = [loader.batch(step) for step in range(-(-loader.num_windows // batch_size))]
    rows = torch.cat([batch.tokens for batch in batches])[: loader.num_windows]
    shown = torch.cat([real(batch) for batch in batches])[: loader.num_windows]
    tokens = rows[shown].tolist()
    assert len(tokens) == len(set(tokens))
    if layout["layout"] == "padded":
        assert sorted(tokens) == sorted(t for d in documents for t in d[:context])


def test_epochs_begin_at_other_offsets_and_in_other_orders(store_of):
    """A token does not always stand at the same place, and windows are full wherever they begin."""
    loader = make(store_of([list(range(103))]), context=10, batch_size=loader_windows(103, 10))
    epochs = [loader.batch(step) for step in range(12)]
    offsets = {int(batch.tokens.min()) for batch in epochs}
    assert len(offsets) > 3 and max(offsets) < 10 + 3  # the last 3 of 102 places are reached by every second epoch
    assert len({tuple(batch.tokens[:, 0].tolist()) for batch in epochs}) == 12
    assert all(batch.lengths is None for batch in epochs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_seed_is_another_order(store_of, layout):
    """Of the same windows: not of what is drawn within them alone."""
    store = store_of([[100 * d + place for place in range(4)] for d in range(50)])
    orders = [make(store, seed=seed, batch_size=40, **layout).batch(0).tokens[:, 0].tolist() for seed in range(3)]
    assert len({tuple(first // 100 for first in order) for order in orders}) == 3


@pytest.mark.parametrize("context", [1, 2, 7, 10])
def test_an_epoch_has_all_windows_that_are_full_at_every_offset(store_of, context):
    """Counted offset by offset: not one is lost at the end, whatever the length of the text."""
    for length in range(2, 60):
        loader = make(store_of([list(range(length))]), context=context, batch_size=1)
        places = length - 1  # the last token has no next one
        fitting = min(len(range(offset, places - context + 1, context)) for offset in range(context))
        assert loader.num_windows == max(1, fitting), length


@pytest.mark.parametrize("context", [1, 2, 7, 10])
def test_every_place_of_a_text_is_reached_in_some_epoch(store_of, context):
    """Its first and last tokens too, of which an epoch of full windows leaves some out."""
    for length in [*range(context + 1, 4 * context + 2), 57]:
        loader = make(store_of([list(range(length))]), context=context, batch_size=1)
        batches = [loader.batch(step) for step in range(loader.num_windows * 20 * context)]
        assert {place for batch in batches for place in batch.tokens[0].tolist()} == set(range(length - 1)), length
        assert {place for batch in batches for place in batch.targets[0].tolist()} == set(range(1, length)), length


def loader_windows(tokens, context):
    """Number of windows that are full at every offset: one place is lost to the shift."""
    return (tokens - 1 - context + 1) // context


def fields(batch):
    """All of a batch, to compare."""
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(batch).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_k_needs_no_steps_before_it(store_of, layout):
    """A new loader asked for step k gives what the old one gives after k steps: resuming is exact."""
    store = store_of([[100 * d + i for i in range(3 + 7 * d % 11)] for d in range(9)])
    walked = make(store, seed=5, **layout)
    steps = [fields(walked.batch(step)) for step in range(30)]
    for step in (0, 1, 13, 29):
        assert fields(make(store, seed=5, **layout).batch(step)) == steps[step]
    assert fields(make(store, seed=6, **layout).batch(3)) != steps[3]
    assert len({batch["seed"] for batch in steps}) == 30, "what is drawn within batches repeats itself"


def test_evaluation_draws_the_same_for_a_batch_and_another_for_the_next(store_of):
    """Masks of held-out text are those of the last look at it, and no batch has the pattern of another one."""
    store = store_of([list(range(40))])
    looks = [[batch.seed for batch in make(store, seed=5).eval_batches(2)] for _ in range(2)]
    assert looks[0] == looks[1] and len(set(looks[0])) == len(looks[0]) == 5
    assert set(looks[0]).isdisjoint(batch.seed for batch in make(store, seed=6).eval_batches(2))


@pytest.mark.parametrize("documents", [[[1]], [[]]])
def test_a_text_without_a_target(store_of, documents):
    """One token has nothing to predict."""
    with pytest.raises(InputError, match="give a longer one"):
        make(store_of(documents))


def test_a_text_shorter_than_the_context(store_of):
    """It is one short row, in training as in evaluation."""
    loader = make(store_of([[1, 2, 3]]), context=50)
    for batch in (loader.batch(0), *loader.eval_batches(1)):
        assert batch.tokens[0, :2].tolist() == [1, 2] and set(batch.lengths.tolist()) == {2}


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_packed_document_gives_the_logits_that_it_gives_alone(store_of, kind):
    """Through the loader's own fields: what else stands in the window changes nothing."""
    documents = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]
    torch.manual_seed(0)
    config = ModelConfig(
        kind=kind, vocab_size=20, context=16, num_layers=2, width=16, num_heads=2, position="rotary", norm="rms_norm"
    )
    model = build_model(config).double().eval()
    model.compute_in(torch.float64)
    (batch,) = make(store_of(documents), context=14, shift=False).eval_batches(1)
    with torch.no_grad():
        packed = model.logits(batch.tokens, **batch.model_inputs())[0]
        alone = torch.cat([model.logits(torch.tensor([document]))[0] for document in documents])
    assert (packed - alone).abs().max() < 1e-10


def test_large_ids_keep_their_value(store_of):
    """uint16 ids above 32,767 are not taken for negative ones."""
    loader = make(store_of([[65535, 40000, 65534]]))
    assert loader.batch(0).tokens[0, :2].tolist() == [65535, 40000]
    assert loader.batch(0).tokens.dtype == loader.batch(0).targets.dtype == torch.int64
    assert isinstance(loader.store.tokens, np.ndarray)
