"""Which control symbols stand around the texts that a model reads: `[CLS] A [SEP]`, `<s> A </s> B </s>`, or none.

A tokenizer that was made here frames texts as documents were in pretraining; one that came as a tokenizer.json as its
file says, in what the `tokenizers` library calls the post-processor:

    BertProcessing       cls A sep          cls A sep B sep         types 0 0 0, 0 0 0 1 1
    RobertaProcessing    cls A sep          cls A sep sep B sep     types 0
    TemplateProcessing   what is written out in it
    ByteLevel, none      A                  A B                     types 0, 0 1

Read next: `byte.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Text = Literal["A", "B"]
Place = tuple[int | Text, int]  # a control symbol's id or a text, and its type
ONE: tuple[Text, ...] = ("A",)
TWO: tuple[Text, ...] = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The symbols around one text, `before A after`, or around two, `before A between B after`.

    before, between, after: ids of control symbols; of one text `between` is empty.
    types: the token type of each place: every symbol and, in their places, A and B.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, places: Sequence[Place], texts: Sequence[Text]) -> Frame:
        """Return the frame that a row of symbols and texts is.

        Raises:
            ValueError: the texts in it are not these, once each and in order.

        >>> Frame.of([(5, 0), ("A", 0), (6, 0), ("B", 1), (6, 1)], TWO)
        Frame(before=(5,), between=(6,), after=(6,), types=(0, 0, 0, 1, 1))
        """
        found = [place for place, _ in places if isinstance(place, str)]
        if found != list(texts):
            raise ValueError(f"its post-processor puts the texts {' '.join(found) or '(none)'}, not {' '.join(texts)}")
        parts: list[list[int]] = [[]]
        for place, _ in places:
            if isinstance(place, str):
                parts.append([])
            else:
                parts[-1].append(place)
        before, between, after = parts if len(texts) > 1 else (parts[0], [], parts[1])
        return cls(
            before=tuple(before), between=tuple(between), after=tuple(after), types=tuple(kind for _, kind in places)
        )

    @property
    def size(self) -> int:
        """How many control symbols there are."""
        return len(self.before) + len(self.between) + len(self.after)

    def places(self) -> list[Place]:
        """Return the symbols and texts in their order, each with its type.

        >>> Frame.of([(5, 0), ("A", 0), (6, 0)], ONE).places()
        [(5, 0), ('A', 0), (6, 0)]
        """
        texts: list[int | Text] = ["A"] if len(self.types) == self.size + 1 else ["A", *self.between, "B"]
        row: list[int | Text] = [*self.before, *texts, *self.after]
        return list(zip(row, self.types, strict=True))

    def types_of(self, *lengths: int) -> list[int]:
        """Return the type of each token of a sequence whose texts have these numbers of tokens.

        >>> Frame.of([(5, 0), ("A", 0), (6, 0), ("B", 1), (6, 1)], TWO).types_of(2, 1)
        [0, 0, 0, 0, 1, 1]
        """
        counts = [1] * len(self.types)
        at = len(self.before)
        for length in lengths:
            counts[at] = length
            at += 1 + len(self.between)
        return [kind for kind, count in zip(self.types, counts, strict=True) for _ in range(count)]


def symbols_between(before: Sequence[int], after: Sequence[int], *, pair: bool) -> Frame:
    """Return `before A after`, or `before A after B after` with types 0 and 1."""
    places: list[Place] = [*((token, 0) for token in before), ("A", 0), *((token, 0) for token in after)]
    if pair:
        places += [("B", 1), *((token, 1) for token in after)]
    return Frame.of(places, TWO if pair else ONE)


def frame_of_file(processor: Mapping[str, Any] | None, *, pair: bool) -> Frame:
    """Return the frame that the post-processor of a tokenizer.json puts around a text, or around two.

    Raises:
        ValueError: it does something else than to put symbols around texts, or is of an unknown kind.
    """
    found = [step for step in _steps(processor) if step["type"] != "ByteLevel"]
    if len(found) > 1:
        raise ValueError("its post-processor puts frames around frames")
    plain: list[Place] = [("A", 0), ("B", 1)] if pair else [("A", 0)]
    places = _places(found[0], pair) if found else plain
    return Frame.of(places, TWO if pair else ONE)


def _steps(processor: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the post-processors that one consists of."""
    if processor is None:
        return
    if processor["type"] != "Sequence":
        yield processor
        return
    for inner in processor["processors"]:
        yield from _steps(inner)


def _places(step: Mapping[str, Any], pair: bool) -> list[Place]:
    """Return what one post-processor writes."""
    match step["type"]:
        case "TemplateProcessing":
            return list(_written_out(step, "pair" if pair else "single"))
        case "BertProcessing" | "RobertaProcessing" as kind:
            cls, sep = step["cls"][1], step["sep"][1]
            again, second = ([sep], 0) if kind == "RobertaProcessing" else ([], 1)
            tail = [*((token, 0) for token in again), ("B", second), (sep, second)] if pair else []
            return [(cls, 0), ("A", 0), (sep, 0), *tail]
        case kind:
            raise ValueError(f"its post-processor is a {kind}, which is not known here")


def _written_out(template: Mapping[str, Any], name: str) -> Iterator[Place]:
    """Yield the places of a template."""
    for piece in template[name]:
        if "Sequence" in piece:
            yield piece["Sequence"]["id"], piece["Sequence"]["type_id"]
        else:
            symbol = piece["SpecialToken"]
            for token in template["special_tokens"][symbol["id"]]["ids"]:
                yield token, symbol["type_id"]
