"""sentencepiece: pieces of words, learnt from the text by byte-pair encoding (BPE) or the unigram model.

The settings make sentencepiece, transformers and llama.cpp give the same tokens for the same text, measured on double
and leading spaces, tabs, full-width letters and Chinese:

    identity normalisation, no dummy prefix, no spaces removed     text goes in as it is and comes back as it was, but
                                                                   for U+2581, as which sentencepiece writes a space
    bytes for what has no piece of its own                         nothing is unknown
    unk, bos, eos = 0, 1, 2; pad, mask, cls, sep = 3 .. 6          control symbols, which text cannot produce
    pieces of white space alone                                    on code 2.93 bytes a token in place of 1.96
    long lines split at white space, none skipped                  sentencepiece drops lines above its limit by default

Read next: `byte.py`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from minillm.errors import InputError
from minillm.tokenizer.base import ALL_SPECIALS, FILE, NAMES, Span, Tokenizer, card, encodable
from minillm.tokenizer.config import TokenizerConfig

MODEL_FILE = "tokenizer.model"
SPACE = "\u2581"  # how sentencepiece writes a space
LINE_BYTES = 4096  # longer lines are cut for training
THREADS = 2  # of encode_batch
TOO_HIGH = re.compile(r"Vocabulary size too high \(\d+\).*?<= (\d+)", flags=re.DOTALL)
TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model; BPE and unigram differ in training alone."""

    carries_the_space = True

    def __init__(self, model: bytes) -> None:
        """Read a serialised model.

        Raises:
            ValueError: it is not one, or its control symbols are not where they belong.
        """
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{MODEL_FILE} is not a sentencepiece model") from error
        self.vocab_size = len(self._processor)
        if self.vocab_size < len(NAMES) or tuple(map(self._processor.IdToPiece, range(len(NAMES)))) != NAMES:
            raise ValueError(f"{MODEL_FILE} does not begin with {', '.join(NAMES)}")
        self._model = model
        self.specials = ALL_SPECIALS

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._processor.Encode(encodable(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, two threads at work."""
        return self._processor.Encode([encodable(text) for text in texts], num_threads=THREADS)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the tokens of a text with their places.

        Nothing is normalised, so that the pieces end to end are the text, character for character (a space is written
        as U+2581); bytes count up to the characters that they make.

        Raises:
            InputError: the model does normalise: it was not trained by this file.
        """
        written = encodable(text).replace(" ", SPACE)
        ids, spans = self.encode(text), []
        place, rest = 0, 0  # the next character, and how many of its bytes are still to come
        for token in ids:
            if not self._processor.IsByte(token):
                piece = self._processor.IdToPiece(token)
                if rest or not written.startswith(piece, place):
                    break
                spans.append((place, place + len(piece)))
                place += len(piece)
            elif place < len(written):
                rest = (rest or len(written[place].encode())) - 1
                spans.append((place, place + 1))
                place += rest == 0
        if place != len(written) or len(spans) != len(ids):
            raise InputError(
                f"the {self.kind} tokenizer rewrites text as it encodes it, so that its pieces have no places in the "
                "text; use one that `minillm tokenizer train` made"
            )
        return ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, also where a space has no piece and went as the bytes of U+2581."""
        return self._processor.Decode([int(i) for i in ids]).replace(SPACE, " ")

    def piece(self, token: int) -> str:
        """Return the piece with its spaces as spaces."""
        return self._processor.IdToPiece(token).replace(SPACE, " ")

    def vocabulary(self) -> list[tuple[str, float]]:
        """Return every piece as sentencepiece writes it, with its score: the best is joined, or likely, first."""
        processor = self._processor
        return [(processor.IdToPiece(token), processor.GetScore(token)) for token in range(self.vocab_size)]

    def _surface(self, token: int) -> str:
        if not self._processor.IsByte(token):
            return self.piece(token)
        byte = int(self._processor.IdToPiece(token)[3:5], 16)
        return chr(byte) if byte < 128 else "x"

    def files(self) -> Mapping[str, bytes]:
        """Return tokenizer.toml and the model."""
        return {FILE: card(kind=self.kind), MODEL_FILE: self._model}

    @classmethod
    def from_files(cls, table: Mapping[str, Any], folder: Path) -> Self:
        """Return the tokenizer in a folder."""
        return cls((folder / MODEL_FILE).read_bytes())

    @classmethod
    def train(cls, config: TokenizerConfig, documents: Iterable[str]) -> Self:
        """Learn pieces from documents; where they cannot fill the vocabulary it becomes smaller, as `notice` says.

        Raises:
            InputError: there is no text in the documents.
        """
        lines = _lines(documents, config.max_training_bytes)
        sample = io.StringIO()
        sample.writelines(f"{line}\n" for line in lines)  # kept: a second try needs it too
        if not sample.getvalue().strip("\n"):
            raise InputError("a tokenizer cannot be trained on an empty text")
        size = config.vocab_size
        for _ in range(4):
            try:
                tokenizer = cls(_train(sample.getvalue().split("\n"), cls.kind, size, config))
                break
            except RuntimeError as error:
                size = _possible_size(size, str(error))
        else:
            raise InputError(
                f"sentencepiece finds no {cls.kind} vocabulary for this text; set tokenizer.kind to byte or char"
            )
        asked, came = config.vocab_size, tokenizer.vocab_size
        if came != asked:
            words = f"fills {came:,} tokens" if came < asked else f"needs at least {came:,} tokens"
            tokenizer.notice = f"the text {words}, not tokenizer.vocab_size = {asked:,}"
        return tokenizer


class BPETokenizer(SentencePieceTokenizer):
    """Byte-pair encoding: the most frequent neighbours are merged, again and again. Sennrich et al. (2016)."""

    kind = "bpe"


class UnigramTokenizer(SentencePieceTokenizer):
    """Unigram model: pieces are dropped from a large set as long as the text stays likely. Kudo (2018)."""

    kind = "unigram"


def sentencepiece_tokenizer(model: bytes) -> SentencePieceTokenizer:
    """Return the tokenizer of a serialised model, of the kind that the model is.

    Raises:
        ValueError: it is not one of this file's, or its control symbols are not where they belong.
    """
    tokenizer = BPETokenizer(model)
    # a unigram model scores its pieces by log-probabilities; BPE by their rank, 0, -1, -2, ...
    scores = [score for _, score in tokenizer.vocabulary()[len(NAMES) + 256 :][:2]]  # after the bytes
    is_bpe = scores == [0.0, -1.0][: len(scores)]
    return tokenizer if is_bpe else UnigramTokenizer(model)


def _train(lines: Sequence[str], kind: str, size: int, config: TokenizerConfig) -> bytes:
    """Return a serialised sentencepiece model; raises RuntimeError where the vocabulary size is not possible."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter([line for line in lines if line]),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        character_coverage=config.character_coverage,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        control_symbols=list(NAMES[4:]),
        max_sentence_length=2 * LINE_BYTES,
        num_threads=config.threads,
        minloglevel=2,
    )
    return model.getvalue()


def _possible_size(size: int, message: str) -> int:
    """Return the vocabulary size to try next, taken from sentencepiece's message about `size`."""
    for pattern in (TOO_HIGH, TOO_SMALL):
        if found := pattern.search(message):
            return int(found[1])
    return max(size // 2, len(NAMES) + 256)


def _lines(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Yield the lines of documents for training, `limit` bytes of them and the rest of a line, long ones cut."""
    seen = 0
    for document in documents:
        for line in encodable(document).split("\n"):
            data = line.encode()
            yield from (data[start:stop].decode() for start, stop in _cuts(data))
            seen += len(data) + 1
            if seen > limit:
                return


def _cuts(line: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the parts of a line, of LINE_BYTES at most.

    It is cut before white space; where there is none, between characters.
    """
    start = 0
    while len(line) - start > LINE_BYTES:
        stop = max(line.rfind(space, start + 1, start + LINE_BYTES + 1) for space in (b" ", b"\t"))
        if stop < 0:
            stop = start + LINE_BYTES
            while line[stop] & 0xC0 == 0x80:  # inside a character
                stop -= 1
        yield start, stop
        start = stop
    yield start, len(line)
