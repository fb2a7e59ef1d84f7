r"""Tags of words: the schemes that are read, the one rule that makes BIO of them, and the entities that BIO means.

    word    The   United  Nations   met   in   New    York   City   .
    BIO      O    B-ORG   I-ORG     O     O    B-LOC  I-LOC  I-LOC  O        what is learnt and predicted
    IOB1     O    I-ORG   I-ORG     O     O    I-LOC  I-LOC  I-LOC  O        B- only between two entities of one type
    IOBES    O    B-ORG   E-ORG     O     O    B-LOC  I-LOC  E-LOC  O        S- for an entity of one word

One rule reads all of them and repairs what a model or a person got wrong, as conlleval counts entities: I-X begins an
entity, and becomes B-X, unless the word before is in an entity of type X that goes on. In IOBES and its twins (BILOU
with L and U, BMES with M) E, L, S and U are the last word of theirs.

Source: Tjong Kim Sang and De Meulder (2003), CoNLL-2003, and its script conlleval; Ramshaw and Marcus (1995) for IOB1.

Read next: `tagging.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minillm.errors import InputError

OUTSIDE = "O"
ENTITY_TAG = re.compile(r"([BIMELSU])-(.+)", flags=re.DOTALL)
BEGINS, ENDS = "BSU", "ELSU"


@dataclass(frozen=True, kw_only=True)
class Entity:
    """One entity: its type, and its words first .. stop - 1 of the sentence."""

    type: str
    first: int
    stop: int


def means_entities(tags: Sequence[str]) -> bool:
    """Return whether tags mark entities (one of them is B-X or alike), and not a class for each word (NOUN, VERB)."""
    return any(ENTITY_TAG.fullmatch(tag) for tag in tags)


def to_bio(tags: Sequence[str]) -> list[str]:
    """Return the tags of one sentence in BIO, by the rule at the head of this file; BIO without faults stays as it is.

    Raises:
        ValueError: a tag that is neither O nor of the form B-TYPE.

    >>> to_bio(["I-PER", "I-PER", "B-PER", "O", "B-LOC", "I-ORG"])
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC', 'B-ORG']
    >>> to_bio(["S-PER", "I-PER", "E-PER", "I-PER"])
    ['B-PER', 'B-PER', 'I-PER', 'B-PER']
    """
    result, going_on = [], None  # the type of the entity that the next word may continue
    for tag in tags:
        parts = ENTITY_TAG.fullmatch(tag)
        if parts is None:
            if tag != OUTSIDE:
                raise ValueError(f"{tag!r} is no tag of an entity; write O, B-TYPE or I-TYPE")
            result.append(tag)
            going_on = None
            continue
        prefix, kind = parts.groups()
        result.append(f"B-{kind}" if prefix in BEGINS or kind != going_on else f"I-{kind}")
        going_on = None if prefix in ENDS else kind
    return result


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence in BIO, in order.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC"])
    [Entity(type='PER', first=0, stop=2), Entity(type='LOC', first=3, stop=4)]
    """
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append(Entity(type=tag[2:], first=place, stop=place + 1))
        elif tag.startswith("I-"):
            found[-1] = Entity(type=found[-1].type, first=found[-1].first, stop=place + 1)
    return found


def require_seqeval() -> None:
    """Raise InputError where seqeval, which counts entities, is not installed; before a run rather than at its end."""
    try:
        import seqeval  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the F1 of entities needs seqeval; install it with: pip install 'minillm[finetune]'"
        ) from error


def entity_figures(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and F1 of whole entities, by seqeval.

        precision = right / guessed,     recall = right / true,     f1 = 2 right / (guessed + true)

    An entity is right where its type and both its ends are. `precision`, `recall` and `f1` count all types together;
    `macro_f1` is the mean of the types' F1. A figure over nothing, such as the precision of no guess, is 0.

    Args:
        truth, guesses: one list of BIO tags a sentence, of equal lengths.
    """
    if not _types(truth, guesses):
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0, "macro_f1": 0.0}  # seqeval takes a mean of nothing
    precision, recall, f1, _ = _scores(truth, guesses, "micro")
    macro_f1 = _scores(truth, guesses, "macro")[2]
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "macro_f1": float(macro_f1)}


def entity_table(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1 and support (true entities) of each type; see `entity_figures`."""
    names = _types(truth, guesses)
    if not names:
        return {}
    rows = zip(*_scores(truth, guesses, None), strict=True)
    columns = ("precision", "recall", "f1", "support")
    return {name: dict(zip(columns, map(float, row), strict=True)) for name, row in zip(names, rows, strict=True)}


def _types(*tagged: Sequence[Sequence[str]]) -> list[str]:
    """Return the types of entities in BIO tags, sorted as seqeval does."""
    return sorted({tag[2:] for tags in tagged for row in tags for tag in row if tag != OUTSIDE})


def _scores(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]], average: str | None) -> Any:
    """Return precision, recall, F1 and support: numbers, or without an average arrays over the sorted types."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    scores: Any = precision_recall_fscore_support  # it takes the 0 that its annotation does not know
    return scores([list(row) for row in truth], [list(row) for row in guesses], average=average, zero_division=0)
