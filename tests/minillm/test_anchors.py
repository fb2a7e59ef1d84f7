"""Anchors: closed forms on tiny texts, real compressors, the very targets of the model, a cache that never lies."""

import json
import lzma
import math

import numpy as np
import pytest
import torch

from minillm.anchors import Anchor, cached, causal_anchors, compute_anchors, masked_anchors
from minillm.data.batch import Batch
from minillm.data.corpora import Corpus, Source
from minillm.errors import InputError


def bits(*probabilities):
    """Mean of -log2."""
    return sum(-math.log2(p) for p in probabilities) / len(probabilities)


def by_name(anchors):
    """Anchors by their names."""
    return {anchor.name: anchor for anchor in anchors}


def test_closed_forms_over_bytes():
    """Witten-Bell by hand: "aab" learnt, "abc" asked. D distinct bytes back off with weight D / (N + D)."""
    anchors = by_name(compute_anchors(b"aab", b"abc", order=2))
    first = {"a": (2 + 2 / 256) / 5, "b": (1 + 2 / 256) / 5, "c": (2 / 256) / 5}  # N = 3, D = 2
    assert anchors["uniform"].bits_per_byte == 8.0
    assert anchors["unigram"].bits_per_byte == pytest.approx(bits(*first.values()))
    b_after_a = (1 + 2 * first["b"]) / 4  # after a: a once, b once
    assert anchors["2-gram"].bits_per_byte == pytest.approx(bits(first["a"], b_after_a, first["c"]))  # none after b
    assert list(anchors) == ["uniform", "unigram", "2-gram", "xz", "xz primed"]


def test_sizes_of_xz():
    """Alone: the size of the compressed text. Primed: what it adds to the training text."""
    train, valid = (
        b"the cat sat on the mat, and the dog sat beside it; " * 9,
        b"the dog sat on the mat, and the cat beside it",
    )
    anchors = by_name(compute_anchors(train, valid))

    def size(text):
        return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))

    assert anchors["xz"].bits_per_byte == pytest.approx(8 * size(valid) / len(valid))
    assert anchors["xz primed"].bits_per_byte == pytest.approx(8 * (size(train + valid) - size(train)) / len(valid))
    assert anchors["xz primed"].bits_per_byte < anchors["xz"].bits_per_byte


def test_orders_go_up_to_six():
    """The names are those of the issue's table."""
    names = [anchor.name for anchor in compute_anchors(b"some text to learn from", b"some text")]
    assert names == ["uniform", "unigram", *(f"{k}-gram" for k in range(2, 7)), "xz", "xz primed"]


@pytest.mark.parametrize("train, valid", [(b"", b"a"), (b"a", b"")])
def test_nothing_to_compare(train, valid):
    """Both texts are needed."""
    with pytest.raises(ValueError, match="anchors need"):
        compute_anchors(train, valid)


def corpus_of(*texts):
    """A corpus of texts."""
    return Corpus("some", [Source(str(i), lambda text=text: iter([text])) for i, text in enumerate(texts)], 0.5)


def test_a_long_text_is_cut_and_the_notes_say_so():
    """Figures on the first bytes, and words that tell which of the texts was cut."""
    corpus = corpus_of("abcabcabd" * 40)  # 180 bytes of training, 180 held out
    whole, cut = causal_anchors(corpus), causal_anchors(corpus, limit=100)
    text = ("abcabcabd" * 40).encode()
    assert [a.bits_per_byte for a in cut] == [a.bits_per_byte for a in compute_anchors(text[:100], text[180:280])]
    assert all(a.note.endswith("; on the first 0.0001 MB of training and held-out text") for a in cut)
    assert not any("first" in a.note for a in whole)


def test_cache_is_used_only_for_what_it_was_made_from(tmp_path):
    """The same corpus and limit: read. Another corpus or limit: computed and kept beside it."""
    path, calls = tmp_path / "anchors.json", []

    def compute(name):
        calls.append(name)
        return [Anchor(name=name, bits_per_byte=1.0)]

    for _ in range(2):
        for digest in ("one", "two"):
            anchors = cached(path, {"corpus": digest, "limit": 3}, lambda digest=digest: compute(digest))
            assert anchors == [Anchor(name=digest, bits_per_byte=1.0)]
    assert calls == ["one", "two"]
    cached(path, {"corpus": "one", "limit": 4}, lambda: compute("three"))
    assert calls == ["one", "two", "three"]
    assert len(json.loads(path.read_text())) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        pytest.param(b"[" * 100_000, id="no end"),
        b'{"KEY": {}}',
        b'{"KEY": {"anchors": [{"colour": 1}]}}',
        b'{"KEY": {"anchors": 3}}',
        b'{"KEY": {"anchors": [{"name": "a", "loss": "1.0"}]}}',
        b'{"KEY": {"anchors": [{"name": "a", "loss": NaN}]}}',
        b'{"KEY": {"anchors": [{"name": "a", "loss": null}]}}',
        b'{"KEY": {"anchors": [{"name": 3, "loss": 1.0}]}}',
    ],
    ids=str,
)
def test_a_damaged_cache_costs_time_only(tmp_path, content):
    """It is computed anew and mended."""
    path = tmp_path / "anchors.json"
    wanted = [Anchor(name="a", loss=1.0, masked_accuracy=0.5, note="n")]
    cached(path, {"a": 1}, lambda: wanted)
    (key,) = json.loads(path.read_text())
    path.write_bytes(content.replace(b"KEY", key.encode()))
    assert cached(path, {"a": 1}, lambda: wanted) == wanted
    assert cached(path, {"a": 1}, lambda: pytest.fail("was not mended")) == wanted


def test_anchors_of_another_text_are_made_anew(tmp_path):
    """A cache of the same settings that is of another corpus is not taken."""
    one, two = corpus_of("abcabcabd" * 9, "abcabd" * 9), corpus_of("xyzzy" * 20, "xyxyzzy" * 9)
    path = tmp_path / "anchors.json"
    first = causal_anchors(one, cache=path)
    assert causal_anchors(two, cache=path) == causal_anchors(two) != first == causal_anchors(one, cache=path)


def test_a_cache_that_cannot_be_written(tmp_path):
    """No folder, or none at all: the figures come all the same."""
    for path in (None, tmp_path / "nowhere/anchors.json"):
        assert cached(path, {}, lambda: [Anchor(name="a")]) == [Anchor(name="a")]
    (tmp_path / "anchors.json").mkdir()
    assert cached(tmp_path / "anchors.json", {}, lambda: [Anchor(name="a")]) == [Anchor(name="a")]


class Asks:
    """An objective that asks for chosen places."""

    def __init__(self, places):
        self.places = torch.tensor(places)

    def prepare(self, batch):
        """Return the batch with targets there."""
        import dataclasses

        return dataclasses.replace(batch, targets=batch.tokens.masked_fill(~self.places, -100))


def test_masked_closed_forms():
    """Three tokens, "0 0 1" learnt; asked for the second of "0 1" alone: a unigram and a bigram by hand."""
    batch = Batch(tokens=torch.tensor([[0, 1]]))
    anchors = by_name(
        masked_anchors(np.array([0, 0, 1]), np.array([0, 3]), [batch], Asks([[False, True]]), vocab_size=3)
    )
    unigram = (1 + 2 / 3) / 5
    bigram = (1 + 2 * unigram) / 4
    assert anchors["uniform"].loss == pytest.approx(math.log(3)) and anchors["uniform"].masked_accuracy == 1 / 3
    assert anchors["unigram"].loss == pytest.approx(-math.log(unigram))
    assert anchors["2-gram"].loss == pytest.approx(-math.log(bigram))
    assert anchors["unigram"].masked_accuracy == 0.0  # it guesses 0
    assert "true token" in anchors["2-gram"].note and all(a.bits_per_byte is None for a in anchors.values())


def test_masked_anchors_stay_inside_documents():
    """Padding plays no part, and a context never reaches into the document before: packed and padded agree."""
    train, bounds = np.array([0, 1, 2, 0, 1, 2, 2, 1]), np.array([0, 3, 6, 8])
    packed = Batch(tokens=torch.tensor([[0, 1, 2, 1, 0]]), segments=torch.tensor([[4, 4, 4, 5, 5]]))
    asked = Asks([[False, True, False, True, True]])
    together = masked_anchors(train, bounds, [packed], asked, vocab_size=3)
    padded = Batch(
        tokens=torch.tensor([[2, 0, 1, 2], [2, 2, 1, 0]]), starts=torch.tensor([1, 2]), lengths=torch.tensor([3, 2])
    )
    asked = Asks([[False, False, True, False], [False, False, True, True]])
    assert masked_anchors(train, bounds, [padded], asked, vocab_size=3) == together
    joined = Batch(tokens=packed.tokens)
    asked = Asks([[False, True, False, True, True]])
    assert (
        by_name(masked_anchors(train, bounds, [joined], asked, vocab_size=3))["2-gram"] != by_name(together)["2-gram"]
    )


def test_masked_limit_cuts_documents():
    """The first tokens alone are learnt from, and the notes say so."""
    batch, asked = Batch(tokens=torch.tensor([[0, 1]])), Asks([[True, True]])
    cut = masked_anchors(np.array([0, 0, 1, 1]), np.array([0, 2, 4]), [batch], asked, vocab_size=2, limit=3)
    short = masked_anchors(np.array([0, 0, 1]), np.array([0, 2, 3]), [batch], asked, vocab_size=2)
    assert [a.loss for a in cut] == [a.loss for a in short]
    assert cut[1].note != short[1].note


def test_masked_without_targets():
    """Nothing asked: the held-out text is too short. An objective that sets none is a mistake of its author."""
    batch, tokens, bounds = Batch(tokens=torch.tensor([[0, 1]])), np.array([0, 1]), np.array([0, 2])
    for batches in ([], [batch]):
        with pytest.raises(InputError, match="too short"):
            masked_anchors(tokens, bounds, batches, Asks([[False, False]]), vocab_size=2)

    class Idle:
        def prepare(self, batch):
            return batch

    with pytest.raises(ValueError, match="without targets"):
        masked_anchors(tokens, bounds, [batch], Idle(), vocab_size=2)
