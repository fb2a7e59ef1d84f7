"""Every character of the training text is a token; any other one is unk.

Read next: `training.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.tokenizer.base import ALL_SPECIALS, FILE, NAMES, Span, Tokenizer, card

FIRST = len(NAMES)
UNKNOWN = "\ufffd"


class CharacterTokenizer(Tokenizer):
    """The characters of a text, in code-point order, and the control symbols."""

    kind = "char"

    def __init__(self, alphabet: str) -> None:
        """Take the characters; one that is there twice counts once."""
        self.alphabet = "".join(sorted(set(alphabet)))
        self.specials = ALL_SPECIALS
        self.vocab_size = FIRST + len(self.alphabet)
        self._ids = {character: FIRST + i for i, character in enumerate(self.alphabet)}

    @classmethod
    def train(cls, documents: Iterable[str]) -> CharacterTokenizer:
        """Return the tokenizer of all characters in the documents."""
        found: set[str] = set()
        for document in documents:
            found.update(document)
        return cls("".join(found))

    def encode(self, text: str) -> list[int]:
        """Return one token for each character, unk for those that the training text did not have."""
        get = self._ids.get
        return [get(character, 0) for character in text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return one token for each character, with its place."""
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the characters; unk becomes U+FFFD."""
        alphabet = self.alphabet
        return "".join(alphabet[i - FIRST] if i >= FIRST else UNKNOWN for i in ids if i >= FIRST or i == 0)

    def piece(self, token: int) -> str:
        """Return the character, or a control symbol's name."""
        return NAMES[token] if token < FIRST else self.alphabet[token - FIRST]

    def files(self) -> Mapping[str, bytes]:
        """Return tokenizer.toml alone."""
        return {FILE: card(kind=self.kind, alphabet=[f"{ord(character):x}" for character in self.alphabet])}

    @classmethod
    def from_files(cls, table: Mapping[str, Any], folder: Path) -> CharacterTokenizer:
        """Return the tokenizer that tokenizer.toml describes."""
        return cls("".join(chr(int(code, 16)) for code in table["alphabet"]))
