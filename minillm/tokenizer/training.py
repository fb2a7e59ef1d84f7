"""From documents to a tokenizer of the kind that is asked for.

Read next: `json_file.py`, for tokenizers that were trained elsewhere; then `../data/corpora.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from minillm.errors import InputError
from minillm.tokenizer.base import Tokenizer
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.pieces import BPETokenizer, UnigramTokenizer


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Return a tokenizer trained on documents; the same documents and settings give the same one.

    Raises:
        InputError: there is no text in the documents.
    """
    match config.kind:
        case "byte":
            return ByteTokenizer()
        case "char":
            tokenizer = CharacterTokenizer.train(documents)
            if not tokenizer.alphabet:
                raise InputError("a tokenizer cannot be trained on an empty text")
            return tokenizer
        case "unigram":
            return UnigramTokenizer.train(config, documents)
        case _:
            return BPETokenizer.train(config, documents)
