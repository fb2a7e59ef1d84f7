"""Tags to BIO, BIO to entities, and their figures: against cases worked by hand, and against seqeval."""

import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from minillm.errors import InputError
from minillm.finetune.metrics import ClassFigures
from minillm.finetune.tasks.tags import (
    entities,
    entity_classes,
    entity_figures,
    means_entities,
    require_seqeval,
    to_bio,
)

ANY_TAGS = st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("X", "Y-Z"))]))
BIO_LIKE = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]))
EXAMPLE = ["O", "B-ORG", "I-ORG", "O", "B-LOC", "I-LOC", "I-LOC", "B-LOC"]


@pytest.mark.parametrize(
    "given_tags",
    [
        pytest.param(EXAMPLE, id="BIO"),
        pytest.param(["O", "I-ORG", "I-ORG", "O", "I-LOC", "I-LOC", "I-LOC", "B-LOC"], id="IOB1"),
        pytest.param(["O", "B-ORG", "E-ORG", "O", "B-LOC", "I-LOC", "E-LOC", "S-LOC"], id="IOBES"),
        pytest.param(["O", "B-ORG", "L-ORG", "O", "B-LOC", "I-LOC", "L-LOC", "U-LOC"], id="BILOU"),
        pytest.param(["O", "B-ORG", "E-ORG", "O", "B-LOC", "M-LOC", "E-LOC", "S-LOC"], id="BMES"),
    ],
)
def test_every_scheme_says_the_same(given_tags):
    """One sentence in five ways of writing it."""
    assert to_bio(given_tags) == EXAMPLE


@pytest.mark.parametrize(
    "broken, mended",
    [
        (["I-X"], ["B-X"]),
        (["O", "I-X", "I-X"], ["O", "B-X", "I-X"]),
        (["B-X", "I-Y", "I-Y"], ["B-X", "B-Y", "I-Y"]),
        (["B-X", "O", "I-X"], ["B-X", "O", "B-X"]),
        (["E-X", "E-X"], ["B-X", "B-X"]),
        (["B-X", "L-X", "I-X"], ["B-X", "I-X", "B-X"]),
        ([], []),
    ],
    ids=str,
)
def test_repair(broken, mended):
    """I-X without an X before it begins an entity; worked by hand."""
    assert to_bio(broken) == mended


@given(tags=ANY_TAGS)
def test_repaired_tags_are_faultless(tags):
    """Every I-X follows B-X or I-X, nothing else changes of them a second time, and O stays where it was."""
    bio = to_bio(tags)
    for before, tag in zip(["O", *bio], bio, strict=False):
        assert not tag.startswith("I-") or before[2:] == tag[2:]
    assert to_bio(bio) == bio
    assert [tag == "O" for tag in bio] == [tag == "O" for tag in tags]


@given(tags=BIO_LIKE)
def test_entities_are_those_of_seqeval(tags):
    """On raw tags, faults and all, seqeval counts the entities that our repaired ones mean."""
    ours = [(found.type, found.first, found.stop - 1) for found in entities(to_bio(tags))]
    assert ours == get_entities(tags)


@pytest.mark.parametrize("tag", ["X", "B-", "b-PER", "PER-B", "", "B_PER", "Q-PER"])
def test_what_is_no_tag_of_an_entity(tag):
    """It is named, with what is."""
    with pytest.raises(ValueError, match="is no tag of an entity; write O, B-TYPE or I-TYPE"):
        to_bio(["O", tag])


def test_classes_of_words_are_no_entities():
    """Parts of speech, with dashes too, are classes; a single B-X makes entities of all."""
    assert not means_entities(["NOUN", "-LRB-", "O", "NN-PL", ""])
    assert means_entities(["O", "B-X"]) and means_entities(["S-X"])


def test_figures_by_hand():
    """3 true entities, 4 guessed, 2 right: one guess has a wrong end, one stands where nothing is."""
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "O"]]
    guess = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]]
    figures = entity_figures(truth, guess)
    assert figures["precision"] == pytest.approx(2 / 4)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["f1"] == pytest.approx(4 / 7)
    per, loc = 2 * 1 / (2 + 2), 2 * 1 / (2 + 1)
    assert figures["macro_f1"] == pytest.approx((per + loc) / 2)
    person = ClassFigures(name="PER", precision=0.5, recall=0.5, f1=0.5, support=2, predicted=2)
    assert entity_classes(truth, guess)[1] == person
    place = entity_classes(truth, guess)[0]
    assert (place.precision, place.recall, place.f1) == pytest.approx((0.5, 1.0, 2 / 3))
    assert (place.support, place.predicted) == (1, 2)


@pytest.mark.parametrize(
    "truth, guess, known",
    [
        pytest.param([["O"]], [["O"]], {}, id="nothing"),
        pytest.param([], [], {}, id="no sentence"),
        pytest.param([["O"]], [["B-X"]], {"f1": 0.0, "macro_f1": 0.0, "precision": 0.0}, id="no entity"),
        pytest.param([["B-X"]], [["O"]], {"f1": 0.0, "macro_f1": 0.0, "recall": 0.0}, id="no guess"),
    ],
)
def test_what_divides_by_zero_is_none(truth, guess, known):
    """As in all of the metrics here; seqeval would say 0, with a warning."""
    unknown = {"f1": None, "macro_f1": None, "precision": None, "recall": None}
    assert entity_figures(truth, guess) == unknown | known


def test_without_seqeval(monkeypatch):
    """One line that says what to install."""
    plain = builtins.__import__

    def missing(name, *rest):
        if name == "seqeval":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"needs seqeval; install it with: pip install 'minillm\[finetune\]'"):
        require_seqeval()
