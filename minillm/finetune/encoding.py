"""Rows of texts -> token sequences, as the backbone met documents in pretraining.

Read next: `loader.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    token_types: (N,) int8, text A or B; None: the model has none, or there are no pairs.
    targets: (S, ...) int64 or float32, of whole sequences; token_targets: (N,) int64, of their tokens. One at most.
    weights: (S,) float32, how much each sequence counts; None: 1.
    truncation: what was cut.
    details: what the task keeps beside them to read its answers.
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    rows: NDArray[np.int64]
    token_types: NDArray[np.int8] | None = None
    targets: NDArray[np.int64] | NDArray[np.float32] | None = None
    token_targets: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    truncation: Truncation = Truncation()
    details: Any = None

    def __len__(self) -> int:
        return len(self.rows)


class TextEncoder:
    """Texts of rows -> framed token sequences: one text, or a pair; cut, or in windows."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, config: TextConfig) -> None:
        """Take what framing needs.

        Args:
            model: its kind says which control symbols frame a text: cls and sep, or a decoder's bos and eos.
        Raises:
            InputError: `text.max_length` above the model's context, or an overlap that leaves windows no room.
        """
        raise NotImplementedError

    def sequences(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequences:
        """Return the sequences of N rows, in order, without targets."""
        raise NotImplementedError
