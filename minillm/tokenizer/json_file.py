"""Hugging Face's tokenizer.json (WordPiece, byte-level BPE, unigram), run by the `tokenizers` library.

The library lets text produce control symbols: "[MASK]" in a text becomes the mask. Here it must not. So each control
symbol gets a name with spaces around it, " [MASK] ", before the library sees the file, and the library is told not to
look for such names in text. No piece of text has a space at both ends once the pre-tokenizer has dropped or rewritten
spaces; that it does so is tried out when the file is read.

Read next: `hf.py`, which finds the file and the names of its control symbols.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from minillm.errors import InputError
from minillm.tokenizer.base import FILE, Span, Specials, Tokenizer, card, encodable
from minillm.tokenizer.frame import Frame, frame_of_file

JSON_FILE, CONFIG_FILE, MAP_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADDED_FILE, VOCABULARY, GPT2_VOCABULARY, GPT2_MERGES = "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"
# What else a tokenizer consists of in a Hugging Face folder: kept, so that it can go out as it came.
BESIDE = (CONFIG_FILE, MAP_FILE, ADDED_FILE, VOCABULARY, GPT2_VOCABULARY, GPT2_MERGES, "chat_template.jinja")
BESIDE += ("tokenizer.model",)
ROLES = tuple(field.name for field in dataclasses.fields(Specials))  # unk, bos, eos, pad, mask, cls, sep


class JsonTokenizer(Tokenizer):
    """A tokenizer.json as others trained it: what it does to a text (lower case, accents, spaces) is in the file."""

    kind = "json"

    def __init__(self, content: bytes, names: Mapping[str, str], beside: Mapping[str, bytes] | None = None) -> None:
        """Read a tokenizer.json.

        Args:
            content: of the file.
            names: the name of the control symbol for each role of `Specials` that the tokenizer has: mask to [MASK].
            beside: the content of files that came with it, by name: of those in BESIDE.
        Raises:
            ValueError: it is not one, a control symbol is not in it, or text could produce one.
            InputError: the `tokenizers` library is not installed.
        """
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise InputError("a tokenizer.json needs the tokenizers library; pip install 'minillm[hf]'") from error
        try:
            table = json.loads(content)
            self.model_kind = model_kind(table)
            self.carries_the_space = self.model_kind in ("BPE", "Unigram")
            ids = token_ids(table)
            unknown_id(table)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{JSON_FILE} is not a tokenizer's file ({error})") from error
        for role, name in names.items():
            if name not in ids:
                raise ValueError(f"{JSON_FILE} has no token {name!r}, which is to be its {role} symbol")
        self.names = {role: names[role] for role in ROLES if role in names}
        self.specials = Specials(**{role: ids[name] for role, name in self.names.items()})
        self.vocab_size = max(ids.values()) + 1
        self._content, self._beside = content, dict(beside or {})
        control = control_names(table) | set(self.names.values())
        self._control = {ids[name]: name for name in control}
        try:
            self._backend: Any = Backend.from_str(json.dumps(_hidden(table, control)))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"the tokenizers library cannot read {JSON_FILE} ({error})") from error
        self._backend.encode_special_tokens = True  # that is: as the characters that they are
        self._check_unreachable()

    def _check_unreachable(self) -> None:
        """Raise ValueError where a text produces a control symbol: the names that the library knows are tried."""
        unknown = {self.specials.unk, unknown_id(self._table)}
        for token, name in self._control.items():
            for text in (name, _hide(name), f"x{_hide(name)}x"):
                if token not in unknown and token in self._backend.encode(text, add_special_tokens=False).ids:
                    raise ValueError(
                        f"a text can produce the control symbol {name!r}: {JSON_FILE} keeps spaces as they are"
                    )

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._backend.encode(encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text; the library's threads share the work."""
        found = self._backend.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the tokens of a text with their places.

        What the tokenizer drops (spaces, mostly) belongs to the token after it, and at the end to the last one. A
        token that it puts in, such as a first space, has the empty place where it stands.
        """
        encoding = self._backend.encode(encodable(text), add_special_tokens=False)
        spans: list[Span] = []
        edge = 0
        for start, stop in encoding.offsets:
            if spans and start < edge:  # bytes of one character, or the parts of a letter that was taken apart
                start = min(max(start, spans[-1][0]), edge)
            else:
                start = edge
            edge = max(stop, edge)
            spans.append((start, edge))
        if spans and edge < len(text):
            spans[-1] = (spans[-1][0], len(text))
        return encoding.ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, as the file's decoder puts it together; control symbols are left out."""
        return self._backend.decode([int(i) for i in ids if int(i) not in self._control], skip_special_tokens=True)

    def control_ids(self) -> set[int]:
        """Return the ids of all control symbols, those too that the file calls special and that have no role."""
        return {*self.specials.ids(), *self._control}

    def piece(self, token: int) -> str:
        """Return the piece as a person reads it; WordPiece's ## stays, and a part of a character shows its bytes."""
        if token in self._control:
            return self._control[token]
        raw = self._backend.id_to_token(token)
        if raw is None:  # a gap in the numbering
            return f"<{token}>"
        if not self._byte_level or not BYTE_OF.keys() >= set(raw):  # added tokens are written as they are
            return raw.replace("\u2581", " ")
        data = bytes(BYTE_OF[character] for character in raw)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def _surface(self, token: int) -> str:
        raw = self._backend.id_to_token(token) or ""
        if self.model_kind == "WordPiece":
            prefix = self._table_of_model.get("continuing_subword_prefix", "##")
            return raw.removeprefix(prefix) if raw.startswith(prefix) else f" {raw}"
        if suffix := self._table_of_model.get("end_of_word_suffix"):
            return f"{raw.removesuffix(suffix)} " if raw.endswith(suffix) else raw
        if self._byte_level and BYTE_OF.keys() >= set(raw):
            # a byte above 127 is a part of some letter
            return "".join(chr(byte) if byte < 128 else "x" for byte in (BYTE_OF[character] for character in raw))
        if len(raw) == 6 and raw.startswith("<0x") and self._table_of_model.get("byte_fallback"):
            byte = int(raw[3:5], 16)
            return chr(byte) if byte < 128 else "x"
        return self.piece(token)

    @cached_property
    def _table(self) -> dict[str, Any]:
        return json.loads(self._content)

    @property
    def _table_of_model(self) -> dict[str, Any]:
        return self._table["model"]

    @cached_property
    def _byte_level(self) -> bool:
        """Whether the pieces are written in GPT-2's letters for bytes."""
        return any(step.get("type") == "ByteLevel" for step in steps(self._table.get("decoder")))

    def files(self) -> Mapping[str, bytes]:
        """Return tokenizer.toml and tokenizer.json, which stays as it came."""
        return {FILE: card(kind=self.kind, **self.names), JSON_FILE: self._content}

    def beside(self) -> Mapping[str, bytes]:
        """Return the files that it came with."""
        return self._beside

    def frame(self, reader: Literal["encoder", "decoder"], *, pair: bool = False) -> Frame:
        """Return the control symbols around a text, or around two, as the file's post-processor puts them."""
        try:
            return frame_of_file(self._table.get("post_processor"), pair=pair)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{JSON_FILE} cannot be used to frame texts ({error})") from error

    @classmethod
    def from_files(cls, table: Mapping[str, Any], folder: Path) -> JsonTokenizer:
        """Return the tokenizer in a folder."""
        names = {role: str(table[role]) for role in ROLES if role in table}
        return cls((folder / JSON_FILE).read_bytes(), names, files_beside(folder))


def files_beside(folder: Path) -> dict[str, bytes]:
    """Return the content of the files in a folder that belong to its tokenizer.json."""
    return {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}


def model_kind(table: Mapping[str, Any]) -> str:
    """Return WordPiece, BPE, Unigram or WordLevel; files from before 2021 do not say it."""
    model = table["model"]
    if (kind := model.get("type")) is not None:
        return kind
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


def token_ids(table: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json."""
    vocabulary = table["model"]["vocab"]
    pieces = [piece for piece, _ in vocabulary] if isinstance(vocabulary, list) else None
    ids = dict(vocabulary) if pieces is None else {piece: i for i, piece in enumerate(pieces)}
    ids |= {token["content"]: token["id"] for token in table.get("added_tokens") or ()}
    if not ids:
        raise ValueError("it has no tokens")
    for name, token in ids.items():
        if not isinstance(token, int) or token < 0:
            raise ValueError(f"the id of {name!r} is {token!r}")
    return ids


def unknown_id(table: Mapping[str, Any]) -> int | None:
    """Return the token that stands for what has no piece; None where everything has one."""
    model = table["model"]
    name, ids = model.get("unk_token"), token_ids(table)
    if model_kind(table) in ("WordPiece", "WordLevel") and name not in model["vocab"]:
        raise ValueError(f"its unknown token {name!r} is not among its pieces")
    if model_kind(table) == "Unigram" and not isinstance(model.get("unk_id"), int):
        raise ValueError("it does not say which token is the unknown one")
    return model.get("unk_id") if name is None else ids.get(name)


def control_names(table: Mapping[str, Any]) -> set[str]:
    """Return the added tokens that the file itself calls special."""
    return {token["content"] for token in table.get("added_tokens") or () if token.get("special")}


def steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the normalizers, pre-tokenizers or decoders that one entry of the file consists of, in order."""
    if part is None:
        return []
    inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    return [part] if inner is None else [step for each in inner for step in steps(each)]


def _hide(name: str) -> str:
    return f" {name} "


def _hidden(table: Mapping[str, Any], control: set[str]) -> dict[str, Any]:
    """Return the file's content with the control symbols renamed, and without what frames, cuts or pads a text."""

    def renamed(name: str) -> str:
        return _hide(name) if name in control else name

    model = dict(table["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[renamed(piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {renamed(piece): token for piece, token in vocabulary.items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    added = [
        # one that the file does not call special is hidden too: the library would find it in text, spaces and all
        {**token, "content": renamed(token["content"]), "special": token.get("special") or token["content"] in control}
        for token in table.get("added_tokens") or ()
    ]
    return {**table, "model": model, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}


def _byte_letters() -> dict[str, int]:
    """Return the byte that each of GPT-2's 256 letters stands for.

    Printable bytes of Latin-1 stand for themselves, the others in order for the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_letters()
