"""Which tokenizer is trained: the section [tokenizer].

Read next: `base.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.config import setting

Kind = Literal["bpe", "unigram", "byte", "char"]
MOST_TOKENS = 10_000_000  # sentencepiece takes up to 2**31 - 1, and dies of some numbers near it
MOST_THREADS, LEAST_COVERAGE = 1024, 0.98  # sentencepiece's own bounds


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The kind of tokenizer and its size. Everything else is fixed where it has one right answer; see `pieces.py`."""

    kind: Kind = setting("bpe", "bpe or unigram (sentencepiece, trained on the text), byte, or char (its characters)")
    vocab_size: int = setting(4096, "bpe, unigram: number of tokens, control symbols included; a small text gets fewer")
    character_coverage: float = setting(
        0.9995,
        "bpe, unigram: share of the text's characters that get their own token, in [0.98, 1]; the rest go as bytes",
    )
    max_training_bytes: int = setting(
        100_000_000, "bpe, unigram: bytes of the text that are trained on, from its start"
    )
    threads: int = setting(2, "bpe, unigram: threads of training; a fixed number, as the result depends on it")

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.threads < 1 or self.max_training_bytes < 1:
            raise ValueError("tokenizer.vocab_size, threads and max_training_bytes must be at least 1")
        if self.vocab_size > MOST_TOKENS:
            raise ValueError(f"tokenizer.vocab_size must be at most {MOST_TOKENS}, got {self.vocab_size}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"tokenizer.threads must be at most {MOST_THREADS}, got {self.threads}")
        if not LEAST_COVERAGE <= self.character_coverage <= 1.0:
            raise ValueError(
                f"tokenizer.character_coverage must be in [{LEAST_COVERAGE}, 1], got {self.character_coverage}"
            )
