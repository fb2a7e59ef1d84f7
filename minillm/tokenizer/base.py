"""What every tokenizer can do, and which control symbols it has.

Text can never produce a control symbol: "[MASK]" or "<s>" in a text are encoded as the characters that they are. Who
needs one takes its id from `specials`.

Read next: `pieces.py`, then `frame.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError
from minillm.tokenizer.frame import Frame, symbols_between

FILE = "tokenizer.toml"
Span = tuple[int, int]  # start and stop, as in text[start:stop]


@dataclass(frozen=True, kw_only=True)
class Specials:
    """The ids of the control symbols; None where a tokenizer has no such symbol.

    unk: an unknown character. bos, eos: beginning and end of a document. pad: fills a row. mask: hides a token.
    cls, sep: stand before and after a text that an encoder reads.
    """

    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None

    def ids(self) -> list[int]:
        """Return those that exist."""
        return [token for token in dataclasses.astuple(self) if token is not None]

    def around(self, reader: str) -> tuple[list[int], list[int]]:
        """Return what stands before and after a document: a decoder's bos and eos, an encoder's cls and sep."""
        ends = (self.bos, self.eos) if reader == "decoder" else (self.cls, self.sep)
        before, after = ([] if token is None else [token] for token in ends)
        return before, after


NAMES = ("<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[CLS]", "[SEP]")  # ids 0 to 6, in the order of Specials
ALL_SPECIALS = Specials(unk=0, bos=1, eos=2, pad=3, mask=4, cls=5, sep=6)


class Tokenizer(ABC):
    """Text to token ids and back.

    kind: bpe, unigram, byte, char or json. vocab_size: number of ids, V. specials: the control symbols.
    notice: something that the user should know about how it was trained; empty: nothing.
    carries_the_space: whether pieces begin with the space before them, as in "the| cat".
    """

    kind: ClassVar[str]
    carries_the_space: bool = False
    vocab_size: int
    specials: Specials
    notice: str = ""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without control symbols (but unk for a character that a `char` one lacks)."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the tokens of a text and the (start, stop) of each: its characters are text[start:stop].

        Neither starts nor stops ever go back, and together they cover the text. Tokens share characters only where one
        character takes several, as bytes: each of them has the whole of it. The space before a word is a part of the
        piece that carries it.

        Raises:
            InputError: the tokenizer rewrites the text as it encodes, so that its pieces are no parts of it.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; control symbols are left out, bytes that are no UTF-8 become U+FFFD.

        For every text without unknown characters decode(encode(text)) == text, but that the sentencepiece kinds give
        back U+2581 as a space, and that an imported one (`json`) may lower the case, drop spaces, and the like.
        """

    def control_ids(self) -> set[int]:
        """Return the ids of all control symbols; an imported file may have some that are none of `Specials`."""
        return set(self.specials.ids())

    @abstractmethod
    def piece(self, token: int) -> str:
        """Return one token as a person reads it: its text, a control symbol's name, or <0x0A> for a byte."""

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Return the content of the files that decide how text is encoded, by name, tokenizer.toml among them."""

    def beside(self) -> Mapping[str, bytes]:
        """Return the content of further files that `save` writes: what others than this project read."""
        return {}

    def frame(self, reader: Literal["encoder", "decoder"], *, pair: bool = False) -> Frame:
        """Return the control symbols around a text that a model reads, or around two texts.

            encoder   cls A sep     cls A sep B sep
            decoder   bos A eos     bos A eos B eos     a symbol that the tokenizer lacks is left out

        Raises:
            InputError: an imported tokenizer whose file frames texts in a way that is not known.
        """
        return symbols_between(*self.specials.around(reader), pair=pair)

    def word_classes(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (begins_inside, ends_inside), each (V,): the token's first, or last, character is a word character.

        Two neighbours belong to one word when the left one ends inside and the right one begins inside. A piece with a
        space before its word does not begin inside; a byte above 127 is a part of some letter and counts as one.
        """
        begins, ends = np.zeros(self.vocab_size, bool), np.zeros(self.vocab_size, bool)
        control = set(self.specials.ids())
        for token in range(self.vocab_size):
            if token not in control and (text := self._surface(token)):
                begins[token], ends[token] = _in_word(text[0]), _in_word(text[-1])
        return begins, ends

    def _surface(self, token: int) -> str:
        """Return the text that a token stands for; a byte above 127 as a letter."""
        return self.piece(token)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides how text is encoded, as hexadecimal digits."""
        files = sorted(self.files().items())
        return hashlib.sha256(b"".join(name.encode() + b"\0" + content for name, content in files)).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder, which is made if need be; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in sorted(
            {**self.beside(), **self.files()}.items(), key=lambda file: file[0] == FILE
        ):  # the one that is looked for last
            handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                os.chmod(draft, 0o644)
                os.replace(draft, folder / name)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise


def _in_word(character: str) -> bool:
    """Return whether a character belongs to a word: letters, digits and the underscore do."""
    return character.isalnum() or character == "_"


def encodable(text: str) -> str:
    """Return text that UTF-8 can hold: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode()


def card(**values: Any) -> bytes:
    """Return tokenizer.toml: flat strings and integers, which JSON writes as TOML does."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()).encode()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in a folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from minillm.tokenizer.byte import ByteTokenizer
    from minillm.tokenizer.character import CharacterTokenizer
    from minillm.tokenizer.json_file import JsonTokenizer
    from minillm.tokenizer.pieces import BPETokenizer, UnigramTokenizer

    path = folder / FILE
    classes = (BPETokenizer, UnigramTokenizer, ByteTokenizer, CharacterTokenizer, JsonTokenizer)
    kinds: dict[str, type] = {c.kind: c for c in classes}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return kinds[table["kind"]].from_files(table, folder)
    except InputError:
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else FILE
        raise InputError(
            f"{folder} holds no tokenizer ({missing} is missing); copy it from where it was made"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise InputError(f"the tokenizer in {folder} is damaged ({error}); copy it from where it was made") from error
