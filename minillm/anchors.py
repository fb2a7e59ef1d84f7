"""What a loss is worth: the figures of simple models that were trained on the same text and asked the same.

    causal LM, bits per byte of held-out text    uniform, unigram, 2- to 6-gram over bytes, xz alone and primed
    masked LM, nats per masked token             uniform, unigram, 2- and 3-gram over tokens, from the left only

Tokens stop at order 3: on stdlib-docs, 0.93 million tokens of 2,048 kinds, orders 3, 4 and 5 have a loss of 4.03, 4.13
and 4.21 nats. A higher order guesses a little more often right (27.3, 28.8 and 29.1 %), at a loss that is worse.

Read next: `ngram.py`, then `evaluate.py`, which puts the model beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import lzma
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from minillm.checkpoint.files import write_text
from minillm.data.batch import IGNORED, Batch
from minillm.data.corpora import Corpus, Split
from minillm.errors import InputError
from minillm.ngram import NGram

LIMIT = 16_000_000  # bytes of training text and of held-out text that anchors look at; the notes say when it cuts
BYTE_ORDER = 6
TOKEN_ORDER = 3


class Prepares(Protocol):
    """What held-out text needs of an objective: inputs and targets, the same for the same `batch.seed`."""

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the tokens that a model sees and the targets that it is asked for, -100: none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One simple model on the held-out text.

    name: such as "5-gram" or "xz primed".
    bits_per_byte: None for masked LM.
    loss: nats per masked token; None for causal LM.
    masked_accuracy: share of masked tokens guessed right, in [0, 1]; None for causal LM.
    note: what it is, in a few words.
    """

    name: str
    bits_per_byte: float | None = None
    loss: float | None = None
    masked_accuracy: float | None = None
    note: str = ""


def compute_anchors(train: bytes, valid: bytes, *, order: int = BYTE_ORDER) -> list[Anchor]:
    """Return the anchors of causal LM: bits per byte of `valid` under models that learnt from `train`.

        xz alone  = 8 |C(valid)| / |valid|        xz primed = 8 (|C(train + valid)| - |C(train)|) / |valid|

    with C = xz at its strongest preset and a dictionary that covers all of the text. The n-grams are Witten-Bell over
    bytes; where documents begin is not marked. They do not predict where a document ends, which a decoder with an
    end-of-document symbol is asked for, so they have a small advantage on many short documents.

    Args:
        train, valid: UTF-8 text; all documents, one after the other.
        order: longest n-gram.
    Raises:
        ValueError: no text in one of them.

    Cost: 3 MB with 10 % held out took 12 s on two CPU cores; xz and n-grams take about 1 s per MB each.
    """
    if not train or not valid:
        raise ValueError(f"anchors need training and held-out text, got {len(train)} and {len(valid)} bytes")
    with ThreadPoolExecutor() as pool:  # xz gives Python's lock back, so it runs beside the n-grams
        alone, learnt, both = (pool.submit(_xz_size, text) for text in (valid, train, train + valid))
        tokens = np.frombuffer(train, np.uint8)
        bits = NGram(tokens, vocab_size=256, order=order).losses(np.frombuffer(valid, np.uint8)) / math.log(2)
        alone, primed = alone.result(), both.result() - learnt.result()
    ngrams = [
        Anchor(name="unigram" if k == 1 else f"{k}-gram", bits_per_byte=float(bits[k].mean()), note=_ngram_note(k))
        for k in range(1, len(bits))
    ]
    return [
        Anchor(name="uniform", bits_per_byte=8.0, note="every byte value alike"),
        *ngrams,
        Anchor(name="xz", bits_per_byte=8 * alone / len(valid), note="compressor, held-out text alone"),
        Anchor(name="xz primed", bits_per_byte=8 * primed / len(valid), note="compressor that read the training text"),
    ]


def _ngram_note(order: int) -> str:
    """Return what an n-gram over bytes is, in a few words."""
    return "frequency of each byte" if order == 1 else f"the {order - 1} byte{'s' if order > 2 else ''} before decide"


def _xz_size(text: bytes) -> int:
    """Return the size of `text` under xz -9e. A dictionary as large as the text, but no larger, saves memory only."""
    size = max(4096, 1 << (len(text) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def causal_anchors(corpus: Corpus, *, cache: Path | None = None, limit: int = LIMIT) -> list[Anchor]:
    """Return the anchors of causal LM on a corpus; see `compute_anchors`.

    Args:
        corpus: its two splits are read up to `limit` bytes each.
        cache: a file that keeps them, such as RUN/anchors.json.
        limit: bytes; the notes say so where a split is longer.
    """

    def compute() -> list[Anchor]:
        train, train_cut = _beginning(corpus, "train", limit)
        valid, valid_cut = _beginning(corpus, "valid", limit)
        parts = [name for name, cut in (("training", train_cut), ("held-out", valid_cut)) if cut]
        cut_note = f"; on the first {limit / 1e6:g} MB of {' and '.join(parts)} text" if parts else ""
        return [dataclasses.replace(anchor, note=anchor.note + cut_note) for anchor in compute_anchors(train, valid)]

    return cached(cache, {"corpus": corpus.digest, "task": "causal", "limit": limit, "order": BYTE_ORDER}, compute)


def _beginning(corpus: Corpus, split: Split, limit: int) -> tuple[bytes, bool]:
    """Return the first `limit` bytes of a split, and whether it goes on after them."""
    text = bytearray()
    for part, _ in corpus.parts(split):  # not by document: one may be larger than memory
        text += part.encode()
        if len(text) > limit:
            return bytes(text[:limit]), True
    return bytes(text), False


def masked_anchors(
    tokens: NDArray[np.integer],
    bounds: NDArray[np.int64],
    batches: Iterable[Batch],
    objective: Prepares,
    *,
    vocab_size: int,
    limit: int = LIMIT,
) -> list[Anchor]:
    """Return the anchors of masked LM: nats and right guesses on the very tokens that the model is asked for.

    The n-grams are Witten-Bell over tokens. They see the true tokens to the left, also where the model sees a mask, and
    nothing to the right.

    Args:
        tokens, bounds: training documents as `TokenStore` has them.
        batches: what the model is evaluated on, such as `loader.eval_batches(rows)`.
        objective: chooses the targets.
        vocab_size: V.
        limit: training tokens; the notes say so where there are more.
    Raises:
        InputError: no targets.
        ValueError: an objective that sets no targets.

    Cost: one sort of the training tokens per order, and one search per held-out token and order.
    """
    if cut := len(tokens) > limit:
        tokens, bounds = tokens[:limit], np.append(bounds[bounds < limit], limit)
    pieces, chosen = [], []
    for batch in batches:
        targets = objective.prepare(batch).targets
        if targets is None:
            raise ValueError("the objective prepared a batch without targets")
        for row in range(len(targets)):
            for start, stop in _documents_of(batch, row):
                pieces.append(batch.tokens[row, start:stop].numpy())
                chosen.append((targets[row, start:stop] != IGNORED).numpy())
    asked = np.concatenate(chosen) if chosen else np.zeros(0, bool)
    if not asked.any():
        raise InputError("no targets to compare on; the held-out text is too short, hold out more of it")
    held_out, held_out_bounds = np.concatenate(pieces), np.cumsum([0, *map(len, pieces)])
    model = NGram(np.asarray(tokens), bounds, vocab_size=vocab_size, order=TOKEN_ORDER)
    losses = model.losses(held_out, held_out_bounds)[:, asked].mean(axis=1)
    right = (model.best(held_out, held_out_bounds) == held_out)[:, asked].mean(axis=1)
    cut_note = f"; of the first {limit / 1e6:g} million training tokens" if cut else ""
    names = ["unigram", *(f"{k}-gram" for k in range(2, model.order + 1))]
    notes = ["frequency of each token", *(f"the {k - 1} true token{'s' * (k > 2)} before decide" for k in range(2, 10))]
    return [
        Anchor(name="uniform", loss=math.log(vocab_size), masked_accuracy=1 / vocab_size, note="every token alike"),
        *(
            Anchor(name=name, loss=float(loss), masked_accuracy=float(hits), note=note + cut_note)
            for name, loss, hits, note in zip(names, losses[1:], right, notes, strict=False)
        ),
    ]


def _documents_of(batch: Batch, row: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the documents, or parts of them, that stand in a row of a batch."""
    first = 0 if batch.starts is None else int(batch.starts[row])
    stop = batch.tokens.shape[1] if batch.lengths is None else first + int(batch.lengths[row])
    if batch.segments is None:
        return [(first, stop)]
    changes = (torch.diff(batch.segments[row, first:stop]) != 0).nonzero()[:, 0] + first + 1
    edges = [first, *changes.tolist(), stop]
    return list(zip(edges[:-1], edges[1:], strict=True))


def cached(path: Path | None, settings: dict[str, Any], compute: Callable[[], list[Anchor]]) -> list[Anchor]:
    """Return anchors from a JSON file if it has them for these settings, else compute and keep them there.

    Args:
        path: the file; None: always compute. One that is missing, damaged or not writable costs time, no more.
        settings: what decides the result: the digest of the corpus, the task, ...
        compute: called when the file does not have them.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    kept: dict[str, Any] = {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return [_checked(Anchor(**row)) for row in kept[key]["anchors"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        anchors = compute()
    if path is not None and path.parent.is_dir():
        kept = kept if isinstance(kept, dict) else {}
        kept[key] = {"settings": settings, "anchors": [dataclasses.asdict(anchor) for anchor in anchors]}
        with contextlib.suppress(InputError):
            write_text(path, json.dumps(kept, indent=1) + "\n")
    return anchors


def _checked(anchor: Anchor) -> Anchor:
    """Return an anchor that was read; ValueError where it has no figure to compare with, or one that is no number."""
    figures = [f for f in (anchor.bits_per_byte, anchor.loss, anchor.masked_accuracy) if f is not None]
    numbers = all(isinstance(figure, float) and math.isfinite(figure) for figure in figures)
    words = isinstance(anchor.name, str) and isinstance(anchor.note, str)
    if not (numbers and words) or (anchor.bits_per_byte is None and anchor.loss is None):
        raise ValueError(f"no anchor: {anchor}")
    return anchor
