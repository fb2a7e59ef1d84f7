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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minillm.errors import InputError
from minillm.finetune.metrics import ClassFigures

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


def entity_figures(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Return precision, recall and F1 of whole entities, by seqeval.

        precision = right / guessed,     recall = right / true,     f1 = 2 right / (guessed + true)

    An entity is right where its type and both its ends are. `precision`, `recall` and `f1` count all types together;
    `macro_f1` is the mean of the types' F1, over those that are there or were guessed. None: the formula divides by
    zero.

    Args:
        truth, guesses: one list of BIO tags a sentence, of equal lengths.
    """
    classes = entity_classes(truth, guesses)
    if not classes:
        return {"f1": None, "precision": None, "recall": None, "macro_f1": None}
    precision, recall, f1, _ = _scores(truth, guesses, "micro")
    return {
        "f1": float(f1),
        "precision": float(precision) if any(row.predicted for row in classes) else None,
        "recall": float(recall) if any(row.support for row in classes) else None,
        "macro_f1": float(_scores(truth, guesses, "macro")[2]),
    }


def entity_classes(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> list[ClassFigures]:
    """Return the figures of each type of entity, sorted by name; see `entity_figures`."""
    names = sorted({tag[2:] for row in (*truth, *guesses) for tag in row if tag != OUTSIDE})
    if not names:
        return []  # seqeval would take a mean of nothing
    predicted = Counter(found.type for row in guesses for found in entities(row))
    return [
        ClassFigures(
            name=name,
            precision=float(precision) if predicted[name] else None,
            recall=float(recall) if support else None,
            f1=float(f1),
            support=int(support),
            predicted=predicted[name],
        )
        for name, precision, recall, f1, support in zip(names, *_scores(truth, guesses, None), strict=True)
    ]


def _scores(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]], average: str | None) -> Any:
    """Return precision, recall, F1 and support: numbers, or without an average arrays over the sorted types."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    scores: Any = precision_recall_fscore_support  # it takes the 0 that its annotation does not know
    return scores([list(row) for row in truth], [list(row) for row in guesses], average=average, zero_division=0)
