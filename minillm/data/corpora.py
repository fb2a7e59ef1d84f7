"""Where text comes from: the running Python's standard library, or one's own files. Split so that nothing leaks.

    one file        the first 90 % of its characters are for training, the rest is held out (as nanoGPT cuts it)
    several files   each file as a whole is on one side, by the hash of its name

Every file is one document. Text is read part by part, so that a file may be larger than memory.

Read next: `stdlib.py`, then `shards.py`.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from minillm.config import nearest
from minillm.data import stdlib
from minillm.errors import InputError

Split = Literal["train", "valid"]
SUFFIXES = (".txt", ".md")
PART = 1 << 20  # characters read at once


@dataclass(frozen=True)
class Source:
    """One file or embedded text. parts: opens it anew and gives its text, cut after line ends."""

    name: str
    parts: Callable[[], Iterator[str]]


class Corpus:
    """Documents in two splits. Opening one reads no text; counting and the digest read all of it, once.

    notice: something that the user should know about what was found; empty: nothing.
    """

    notice: str = ""

    def __init__(self, name: str, sources: Sequence[Source], valid_fraction: float) -> None:
        """Take the sources in their order; `open_corpus` finds them."""
        self.name = name
        self._sources = list(sources)
        self._fraction = valid_fraction

    @property
    def digest(self) -> str:
        """SHA-256 over the names and texts of all sources and the share held out, as hexadecimal digits."""
        return self._facts[0]

    def num_bytes(self, split: Split) -> int:
        """Return the size of a split's text in UTF-8."""
        return self._facts[1][split]

    def num_documents(self, split: Split) -> int:
        """Return the number of documents in a split."""
        return 1 if len(self._sources) == 1 else len(self._sources_of(split))

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the documents of a split, each as a whole."""
        text: list[str] = []
        for part, ends in self.parts(split):
            text.append(part)
            if ends:
                yield "".join(text)
                text = []

    def parts(self, split: Split) -> Iterator[tuple[str, bool]]:
        """Yield (text, whether its document ends with it), in parts of about a million characters."""
        if len(self._sources) == 1:
            yield from _marked(self._half(split))
            return
        for source in self._sources_of(split):
            yield from _marked(source.parts())

    def texts(self, split: Split) -> Iterator[str]:
        """Yield the text of a split in parts of about a million characters, for those who need no bounds."""
        return (text for text, _ in self.parts(split))

    def whole_parts(self) -> Iterator[tuple[str, bool]]:
        """Yield the parts of all documents, no split made."""
        for source in self._sources:
            yield from _marked(source.parts())

    def _half(self, split: Split) -> Iterator[str]:
        """Yield the parts of a single source's split: its characters before the cut, or after it."""
        cut, at = self._facts[2], 0
        for part in self._sources[0].parts():
            inside = part[: max(cut - at, 0)] if split == "train" else part[max(cut - at, 0) :]
            at += len(part)
            if inside:
                yield inside

    def _sources_of(self, split: Split) -> list[Source]:
        """Return the sources of a split: held out are those whose names hash below the fraction, one at least."""
        shares = {source.name: _share(source.name) for source in self._sources}
        held_out = {name for name, share in shares.items() if share < self._fraction}
        if not held_out:
            held_out = {min(shares, key=lambda name: shares[name])}
        if len(held_out) == len(shares):
            held_out.remove(max(shares, key=lambda name: shares[name]))
        return [source for source in self._sources if (source.name in held_out) == (split == "valid")]

    @cached_property
    def _facts(self) -> tuple[str, dict[Split, int], int]:
        """The digest, the bytes of each split, and where a single source is cut, in characters.

        Raises:
            InputError: there is no text in a split.
        """
        digest = hashlib.sha256(f"{self._fraction}\n".encode())
        sizes: dict[str, int] = {}
        characters = 0
        for source in self._sources:
            text = hashlib.sha256()  # of its own, so that no text can pass for another file's name
            sizes[source.name] = 0
            for part in source.parts():
                data = part.encode()
                text.update(data)
                sizes[source.name] += len(data)
                characters += len(part)
            digest.update(f"{text.hexdigest()} {source.name}\0".encode())
        if not characters:
            raise InputError(f"{self.name} is empty; give a text of some thousand words at least")
        if len(self._sources) == 1:
            cut = int(characters * (1 - self._fraction))
            train = self._bytes_before(cut)
            split_sizes: dict[Split, int] = {"train": train, "valid": sum(sizes.values()) - train}
        else:
            cut = 0
            split_sizes = {
                "train": sum(sizes[source.name] for source in self._sources_of("train")),
                "valid": sum(sizes[source.name] for source in self._sources_of("valid")),
            }
        if not all(split_sizes.values()):
            raise InputError(
                f"{self.name} is too short: {characters} characters leave nothing to train on or to hold out"
            )
        return digest.hexdigest(), split_sizes, cut

    def _bytes_before(self, cut: int) -> int:
        """Return the bytes of the first `cut` characters of the only source."""
        total, left = 0, cut
        for part in self._sources[0].parts():
            total += len(part[:left].encode())
            left -= len(part)
            if left <= 0:
                break
        return total


class Against(Corpus):
    """The training text of one corpus with all of another one held out."""

    def __init__(self, trained_on: Corpus, held_out: Corpus) -> None:
        self.name = held_out.name
        self._trained_on, self._held_out = trained_on, held_out

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of both."""
        return hashlib.sha256(f"{self._trained_on.digest} {self._held_out.digest}".encode()).hexdigest()

    def num_bytes(self, split: Split) -> int:
        """Return the size of a split's text in UTF-8."""
        if split == "train":
            return self._trained_on.num_bytes("train")
        return self._held_out.num_bytes("train") + self._held_out.num_bytes("valid")

    def num_documents(self, split: Split) -> int:
        """Return the number of documents in a split."""
        return self._trained_on.num_documents("train") if split == "train" else len(self._held_out._sources)

    def parts(self, split: Split) -> Iterator[tuple[str, bool]]:
        """Yield (text, whether its document ends with it)."""
        return self._trained_on.parts("train") if split == "train" else self._held_out.whole_parts()


def open_corpus(name: str, *, valid_fraction: float = 0.1) -> Corpus:
    """Return a corpus.

    Args:
        name: stdlib-docs, stdlib-code, a .txt or .md file, or a folder in which such files are looked for, its
            sub-folders included, hidden and empty ones left out. A file of several names, by links, has the first;
            links to folders are not followed, as `notice` says: they may lead anywhere.
        valid_fraction: share that is held out, in (0, 1).
    Raises:
        InputError: the name is empty, there is nothing of that name (the nearest embedded one is named), or no such
            file in the folder.
    """
    if not 0.0 < valid_fraction < 1.0:
        raise InputError(f"the share that is held out must be above 0 and below 1, got {valid_fraction}")
    _check_name(name)
    if not name:  # Path("") would be the working directory
        raise InputError(
            f"the text has an empty name; give {', '.join(stdlib.CORPORA)}, a .txt or .md file, or a folder of them"
        )
    if name in stdlib.CORPORA:
        documents = stdlib.CORPORA[name]
        named = [Source(key, lambda key=key: iter([documents()[key]])) for key in sorted(documents())]
        return Corpus(name, named, valid_fraction)
    path = Path(name)
    if path.is_dir():
        inside = [entry for entry in path.rglob("*") if not _hidden(entry.relative_to(path))]
        found = sorted(
            (file.relative_to(path).as_posix(), file)
            for file in inside
            if file.suffix.lower() in SUFFIXES and file.is_file()
            if file.stat().st_size  # an empty file is no document
        )
        links = sorted(entry for entry in inside if entry.is_symlink() and entry.is_dir())
        more = f" and {len(links) - 1} more are links" if links[1:] else " is a link"
        notice = f"{links[0]}{more} to a folder, and left out; give a folder that holds the files" if links else ""
        if not found:
            raise InputError(f"the folder {name} holds no .txt or .md file with text in it{notice and f': {notice}'}")
        for key, _ in found:
            _check_name(key)
        once = {_identity(file): (key, file) for key, file in reversed(found)}  # else one text lies on both sides
        found = sorted(once.values())
        corpus = Corpus(name, [Source(key, lambda file=file: read_parts(file)) for key, file in found], valid_fraction)
        corpus.notice = notice
        return corpus
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{name} is neither a .txt nor a .md file; if it is plain text, rename it")
        return Corpus(path.name, [Source(path.name, lambda: read_parts(path))], valid_fraction)
    looks_like_path = path.suffix or "/" in name
    hint = "" if looks_like_path else nearest(name, stdlib.CORPORA)
    raise InputError(f"no text at {name}: it is no file, no folder and no embedded corpus{hint}")


def _check_name(name: str) -> None:
    """Raise InputError unless a name can be written as UTF-8: digests and config.toml hold it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!a} is not UTF-8; rename it") from error


def read_parts(path: Path) -> Iterator[str]:
    """Yield the text of a file in parts of about a million characters that end with a line, line ends as they are.

    A byte order mark at its beginning is left out.

    Raises:
        InputError: the file cannot be read, or is not UTF-8; the text names the first byte that is not.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            while part := stream.read(PART):
                yield part + stream.readline(PART)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {_first_bad_byte(path)} ({error.reason}); convert it, or leave it out"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _first_bad_byte(path: Path) -> int:
    """Return the offset of the first byte that is no UTF-8."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while data := stream.read(PART):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(data)
            except UnicodeDecodeError as error:
                return offset - held + error.start
            offset += len(data)
    return offset  # the file ends inside a character


def _marked(parts: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Yield each part with whether it is the last one."""
    before = None
    for part in parts:
        if before is not None:
            yield before, False
        before = part
    if before is not None:
        yield before, True


def _share(name: str) -> float:
    """Return a number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _identity(file: Path) -> Path | tuple[int, int]:
    """Return what a file has in common with all of its names, and with no other file."""
    facts = file.stat()  # its number is asked for where it has a second name alone: some file systems number none
    return (facts.st_dev, facts.st_ino) if facts.st_nlink > 1 else file.resolve()


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
