"""Small tokenizer.json files of every model, trained by the `tokenizers` library itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BERT = {"unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"}
ROBERTA = {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>", "cls": "<s>", "sep": "</s>", "bos": "<s>", "eos": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}


def wordpiece(texts: Iterable[str], size: int = 500) -> Tokenizer:
    """BERT's: lower case, accents off, Chinese characters apart; it frames with [CLS] and [SEP]."""
    made: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(BERT.values())))
    frame = [(name, made.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*frame)
    made.enable_truncation(8)  # as many published files do
    made.enable_padding(length=8)
    return made


def byte_level(texts: Iterable[str], special: list[str], size: int = 500) -> Tokenizer:
    """GPT-2's and RoBERTa's: words and the space before them, their bytes written as letters."""
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def unigram(texts: Iterable[str], size: int = 400) -> Tokenizer:
    """XLM-RoBERTa's: a space before the first word, control symbols among the pieces."""
    made: Any = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(texts, trainer)
    return made


def content(made: Tokenizer) -> bytes:
    """Return the file."""
    return made.to_str().encode()


def changed(made: Tokenizer, **parts: Any) -> bytes:
    """Return the file with parts of it replaced."""
    return json.dumps(json.loads(made.to_str()) | parts).encode()
