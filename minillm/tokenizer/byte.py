"""Every byte of the text in UTF-8 is a token: nothing to train, nothing unknown.

Read next: `character.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.tokenizer.base import ALL_SPECIALS, FILE, NAMES, Span, Tokenizer, card

FIRST = len(NAMES)  # id of byte 0: the control symbols come first


class ByteTokenizer(Tokenizer):
    """256 bytes and the control symbols."""

    kind = "byte"

    def __init__(self) -> None:
        self.specials = ALL_SPECIALS
        self.vocab_size = FIRST + 256

    def encode(self, text: str) -> list[int]:
        """Return one token for each byte."""
        return [FIRST + byte for byte in text.encode("utf-8", errors="replace")]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return one token for each byte, with the place of the character that it is a part of."""
        sizes = [len(character.encode("utf-8", errors="replace")) for character in text]
        return self.encode(text), [(i, i + 1) for i, size in enumerate(sizes) for _ in range(size)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the bytes."""
        return bytes(i - FIRST for i in ids if i >= FIRST).decode("utf-8", errors="replace")

    def piece(self, token: int) -> str:
        """Return a printable character as itself, other bytes as <0x0A>."""
        if token < FIRST:
            return NAMES[token]
        byte = token - FIRST
        return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"

    def _surface(self, token: int) -> str:
        byte = token - FIRST
        return chr(byte) if byte < 128 else "x"

    def files(self) -> Mapping[str, bytes]:
        """Return tokenizer.toml alone."""
        return {FILE: card(kind=self.kind)}

    @classmethod
    def from_files(cls, table: Mapping[str, Any], folder: Path) -> ByteTokenizer:
        """Return the tokenizer that tokenizer.toml describes."""
        return cls()
