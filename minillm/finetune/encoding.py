r"""Rows of texts -> token sequences, framed as the tokenizer says (`Tokenizer.frame`).

    encoder    cls A sep      cls A sep B sep     types 0 0 0, 0 0 0 1 1
    decoder    bos A eos      bos A eos B eos     a control symbol that the tokenizer lacks is left out
    imported   before A after, before A between B after, as its tokenizer.json has it

With room for R tokens beside the control symbols, what is longer is

    truncated   A to R. Of a pair token after token is taken from the longer text, from B when both are equally long:
                A and B end with ceil(R / 2) and floor(R / 2), or with less where one of them had less
    windows     the first R tokens of A, then on by R - overlap, until all is seen; the last window ends with A. Of a
                pair A keeps floor(R / 2) tokens, or what B leaves of R where that is more; B is seen through windows.
                Every row counts once in training: its windows weigh 1 / their number

Read next: `loader.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError
from minillm.finetune.config import TextConfig
from minillm.model.config import ModelConfig
from minillm.tokenizer.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """What did not fit: how many rows lost something, and how many tokens that was in all."""

    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """S token sequences of N tokens in all; a row of the table has one or, with windows, several, in order.

    tokens: (N,) int32, all sequences end to end.
    bounds: (S + 1,) int64; sequence s is tokens[bounds[s] : bounds[s + 1]].
    rows: (S,) int64, the row of the table that each came from.
    token_types: (N,) int8, text A or B; None: the model has no types, or there are no pairs.
    segments: (N,) int32, the part of its sequence that a token belongs to, from 0; parts do not see each other, and
        positions count from where each begins. None: a sequence is one part.
    targets: (S, ...) int64 or float32, of whole sequences; token_targets: (N,) int64, of their tokens. One at most.
    weights: (S,) float32, how much each sequence counts; None: 1.
    truncation: what was cut.
    details: what the task keeps beside them to read its answers.
    notes: what the user should know about them, a line each.
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    rows: NDArray[np.int64]
    token_types: NDArray[np.int8] | None = None
    segments: NDArray[np.int32] | None = None
    targets: NDArray[np.int64] | NDArray[np.float32] | None = None
    token_targets: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    truncation: Truncation = Truncation()
    details: Any = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], rows: Sequence[int], lost: Iterable[int], **others: Any) -> Self:
        """Return token sequences laid end to end.

        Args:
            sequences: the tokens of each. rows: the row of the table that each came from.
            lost: of each row of the table, how many of its tokens are in no sequence.
            others: the other fields.
        """
        cut = [tokens for tokens in lost if tokens]
        return cls(
            tokens=np.fromiter(chain.from_iterable(sequences), dtype=np.int32),
            bounds=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
            rows=np.array(rows, dtype=np.int64),
            truncation=Truncation(rows=len(cut), tokens=sum(cut)),
            **others,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, (S,)."""
        return np.diff(self.bounds)

    def with_targets(self, targets: NDArray[np.int64] | NDArray[np.float32]) -> Sequences:
        """Return the sequences with a target each, (S, ...)."""
        return dataclasses.replace(self, targets=targets)


def nothing_left(place: str, text: str, *, what: str = "text") -> InputError:
    """Return the error for a text that has no token, and around which the tokenizer puts no symbol."""
    return InputError(
        f"{place}: the tokenizer leaves nothing of the {what} {text!r:.60}; give another {what}, or take the row out"
    )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens two texts of these lengths keep when token after token is taken from the longer one.

    >>> longest_first(9, 2, room=6), longest_first(9, 8, room=7), longest_first(3, 2, room=6)
    ((4, 2), (4, 3), (3, 2))
    """
    kept = min(second, max(room // 2, room - first))
    return min(first, room - kept), kept


def window_starts(length: int, room: int, overlap: int) -> list[int]:
    """Return where the windows over a text begin: every room - overlap tokens, the last one so that it ends with it.

    >>> window_starts(10, room=6, overlap=2), window_starts(11, room=6, overlap=2), window_starts(5, room=6, overlap=2)
    ([0, 4], [0, 4, 5], [0])
    """
    return [*range(0, length - room, room - overlap), max(length - room, 0)]


class TextEncoder:
    """Texts of rows -> framed token sequences: one text, or a pair; cut, or in windows.

    single, pair: the control symbols around one text and around two. max_length: tokens of a sequence.
    causal: whether a token sees only those before it.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, config: TextConfig, *, pairs: bool = True) -> None:
        """Take what framing needs.

        Args:
            model: its kind says which control symbols frame a text, where the tokenizer was made here.
            pairs: whether there must be room for two texts.
        Raises:
            InputError: a frame that is not known, `text.max_length` above the model's context, or an overlap that
                leaves windows no room.
        """
        self.tokenizer, self.config = tokenizer, config
        self.single, self.pair = tokenizer.frame(model.kind), tokenizer.frame(model.kind, pair=True)
        self.typed = model.token_types > 1
        self.causal = model.kind == "decoder"
        self.max_length = model.context if config.max_length is None else config.max_length
        if self.max_length > model.context:
            raise InputError(f"text.max_length ({self.max_length}) is above the model's context of {model.context}")
        room, least = self.room(pair=pairs), 2 if pairs else 1
        if room < least:
            raise InputError(
                f"text.max_length ({self.max_length}) leaves no room for {'two texts' if pairs else 'a text'}; take "
                f"{self.max_length - room + least} or more"
            )
        if config.long_texts == "windows" and config.overlap >= room // 2:
            raise InputError(
                f"text.overlap ({config.overlap}) must be below half of a sequence of {self.max_length} tokens; "
                f"try {room // 8}"
            )

    def room(self, *, pair: bool) -> int:
        """Return R, the tokens of a sequence that are no control symbols."""
        return self.max_length - (self.pair if pair else self.single).size

    def sequences(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequences:
        """Return the sequences of N rows, in order, without targets."""
        first = self.tokenizer.encode_batch(list(texts))
        second = None if pairs is None else self.tokenizer.encode_batch(list(pairs))
        sequences: list[list[int]] = []
        types: list[int] = []
        rows, weights, lost = [], [], []
        for row, a in enumerate(first):
            if second is None:
                parts, left_out = self._one(a)
                framed = [[*self.single.before, *part, *self.single.after] for part in parts]
            else:
                kept, parts, left_out = self._two(a, second[row])
                head = [*self.pair.before, *kept, *self.pair.between]
                framed = [[*head, *part, *self.pair.after] for part in parts]
                types += [kind for part in parts for kind in self.pair.types_of(len(kept), len(part))]
            sequences += framed
            rows += [row] * len(framed)
            weights += [1.0 / len(framed)] * len(framed)
            lost.append(left_out)
        return Sequences.of(
            sequences,
            rows,
            lost,
            token_types=np.array(types, dtype=np.int8) if self.typed and types else None,
            weights=np.array(weights, dtype=np.float32) if len(rows) > len(first) else None,
        )

    def _one(self, a: list[int]) -> tuple[list[list[int]], int]:
        """Return the parts of a text that become sequences, and how many of its tokens are in none."""
        room = self.room(pair=False)
        if self.config.long_texts == "truncate":
            return [a[:room]], max(len(a) - room, 0)
        return list(self._windows(a, room)), 0

    def _two(self, a: list[int], b: list[int]) -> tuple[list[int], list[list[int]], int]:
        """Return what is kept of A, the parts of B, and how many tokens are in no sequence."""
        room = self.room(pair=True)
        if self.config.long_texts == "truncate" or len(a) + len(b) <= room:
            keep, stay = longest_first(len(a), len(b), room)
            return a[:keep], [b[:stay]], len(a) - keep + len(b) - stay
        kept = a[: max(room // 2, room - len(b))]
        return kept, list(self._windows(b, room - len(kept))), len(a) - len(kept)

    def _windows(self, text: list[int], room: int) -> Iterator[list[int]]:
        """Yield the windows over a text."""
        for start in window_starts(len(text), room, self.config.overlap):
            yield text[start : start + room]
