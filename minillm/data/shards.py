"""Text to token shards: flat files of token ids that are mapped into memory, with the bounds of their documents.

    FOLDER/train.tokens       token ids end to end, little-endian uint16, or uint32 above 65,536 tokens
    FOLDER/train.bounds.npy   int64 (documents + 1,): document d is tokens[bounds[d] : bounds[d + 1]]
    FOLDER/valid.*            the same for held-out text
    FOLDER/meta.json          what they were made from; takes its name last, so that without it nothing is there
    FOLDER/.shards-*          while they are written: a folder of the process's own

Two processes may write at once and none gets the other's tokens unnoticed, but the second undoes what the first did:
whoever shares a folder holds a lock in it, as `../material.py` does.

Read next: `sampler.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.data.corpora import Corpus, Split
from minillm.errors import InputError
from minillm.tokenizer.base import Tokenizer

FORMAT = 1
BATCH_CHARACTERS = 1 << 22  # of text that are encoded at once
META = "meta.json"
DRAFT = ".shards-"  # prefix of a folder of shards that are being written


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """One split as tokens.

    tokens: (N,) uint16 or uint32, mapped: only what is read enters memory.
    bounds: (D + 1,) int64, ascending from 0 to N.
    num_bytes: of the text in UTF-8.
    """

    tokens: NDArray[np.unsignedinteger]
    bounds: NDArray[np.int64]
    num_bytes: int

    @classmethod
    def open(cls, folder: Path, split: Split) -> TokenStore:
        """Return a split of prepared shards.

        Raises:
            InputError: there are none, or they are damaged.
        """
        meta = _read_meta(folder)
        try:
            facts = meta[split]
            num_bytes = facts["bytes"]
            tokens = np.memmap(folder / f"{split}.tokens", dtype=meta["dtype"], mode="r")
            bounds = np.load(folder / f"{split}.bounds.npy", allow_pickle=False)
            if len(tokens) != facts["tokens"] or len(bounds) != facts["documents"] + 1 or bounds[-1] != len(tokens):
                raise ValueError(f"{split} does not have the {facts['tokens']} tokens that {META} says")
            if isinstance(num_bytes, bool) or not isinstance(num_bytes, int) or num_bytes < 0:
                raise ValueError(f"{META} says that {split} has {num_bytes!r:.40} bytes")
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OSError, EOFError) as error:
            raise InputError(f"the token shards in {folder} are not whole ({error}); remove the folder") from error
        return cls(tokens=tokens, bounds=bounds, num_bytes=num_bytes)


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    splits: Sequence[Split] = ("train", "valid"),
    on_progress: Callable[[int, int], object] | None = None,
) -> bool:
    """Write the token shards of a corpus, unless they are there already.

    Args:
        corpus: its text is read part by part.
        tokenizer: its `encode_batch` is called; parts end with lines, which no token crosses.
        folder: where the shards go; it is made.
        prefix, suffix: tokens before and after every document, such as bos and eos.
        splits: which of them are needed.
        on_progress: called with the bytes done and the bytes there are.
    Returns:
        whether anything had to be done: shards of the same text, tokenizer, prefix and suffix are kept.
    Raises:
        InputError: there is no text.
        OSError: they cannot be written; shards that were there before are then still there, and nothing half-written.

    A run that reads other shards in this folder keeps the ones that it has open.

    Cost: about a second for 3 MB with sentencepiece; memory for some ten million characters, however long the text is.
    """
    if open_prepared(corpus, tokenizer, folder, prefix=prefix, suffix=suffix, splits=splits) is not None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _facts(corpus, tokenizer, prefix, suffix)
    total = sum(corpus.num_bytes(split) for split in splits)
    facts: dict[str, Any] = {}
    done = 0
    with TemporaryDirectory(prefix=DRAFT, dir=folder) as own:
        draft = Path(own)
        for split in splits:
            bounds, at = array("q", [0]), 0
            with (draft / f"{split}.tokens").open("wb") as stream:
                for texts, ends in _batches(corpus.parts(split)):
                    opened = at == bounds[-1]
                    for ids, last in zip(tokenizer.encode_batch(texts), ends, strict=True):
                        ids = [*(prefix if opened else ()), *ids, *(suffix if last else ())]
                        stream.write(np.asarray(ids, dtype=wanted["dtype"]).tobytes())
                        at += len(ids)
                        opened = last
                        if last and at > bounds[-1]:  # a document without a token is none: no row begins there
                            bounds.append(at)
                    done += sum(len(text.encode()) for text in texts)
                    if on_progress is not None:
                        on_progress(done, total)
                stream.flush()
                os.fsync(stream.fileno())
            np.save(draft / f"{split}.bounds.npy", np.frombuffer(bounds, dtype=np.int64))
            facts[split] = {"tokens": at, "documents": len(bounds) - 1, "bytes": corpus.num_bytes(split)}
        (draft / META).write_text(json.dumps(wanted | facts, indent=1) + "\n", encoding="utf-8")
        (folder / META).unlink(missing_ok=True)  # from here on to the last renaming nothing is there
        for name in (*(f"{split}.{part}" for split in splits for part in ("tokens", "bounds.npy")), META):
            os.replace(draft / name, folder / name)
    return True


def open_prepared(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    splits: Sequence[Split] = ("train", "valid"),
) -> list[TokenStore] | None:
    """Return the splits, None where `prepare` with the same arguments would have to make them; writes nothing.

    Also while another process writes: `meta.json` goes before the first file is replaced, so that all files are of one
    writing where the one that was read still has its name when the last of them is open.
    """
    wanted = _facts(corpus, tokenizer, prefix, suffix)
    try:
        with (folder / META).open("rb") as stream:  # while it is open no other file gets its number
            meta = _read_meta(folder)
            stores = [TokenStore.open(folder, split) for split in splits]
            if not os.path.samestat(os.fstat(stream.fileno()), (folder / META).stat()):
                return None
    except (InputError, OSError):
        return None
    return stores if all(meta.get(key) == value for key, value in wanted.items()) else None


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed had written; nobody may be writing."""
    for draft in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def _facts(corpus: Corpus, tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> dict[str, Any]:
    """Return what decides the shards of a corpus."""
    return {
        "format": FORMAT,
        "corpus": corpus.digest,
        "tokenizer": tokenizer.digest,
        "prefix": list(prefix),
        "suffix": list(suffix),
        "dtype": "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4",
    }


def _batches(parts: Iterator[tuple[str, bool]]) -> Iterator[tuple[list[str], list[bool]]]:
    """Yield parts of documents, about four million characters at a time, with whether each ends its document."""
    texts: list[str] = []
    ends: list[bool] = []
    size = 0
    for text, last in parts:
        texts.append(text)
        ends.append(last)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield texts, ends
            texts, ends, size = [], [], 0
    if texts:
        yield texts, ends


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise ValueError("no table in it")
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no token shards; prepare them first") from error
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{folder / META} is damaged; remove the folder and prepare the shards again") from error
    return meta
