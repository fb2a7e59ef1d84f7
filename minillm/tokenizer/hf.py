"""The tokenizer of a Hugging Face folder: which file it is in, and what its control symbols are called.

    tokenizer.model     one that `minillm export` wrote: read as what it was
    tokenizer.json      all else that is current
    vocab.txt           BERT's WordPiece from before tokenizer.json
    vocab.json + merges.txt   GPT-2's byte-level BPE from before tokenizer.json

The names are in tokenizer_config.json or special_tokens_map.json; where both are silent, the usual ones are taken when
the tokenizer has them as special tokens.

Read next: `../checkpoint/hf/tokenizer_files.py`, the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.errors import InputError
from minillm.tokenizer.base import Tokenizer
from minillm.tokenizer.json_file import JSON_FILE, ROLES, JsonTokenizer, control_names, token_ids, unknown_id
from minillm.tokenizer.pieces import MODEL_FILE, sentencepiece_tokenizer

CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
VOCABULARY, GPT2_VOCABULARY, GPT2_MERGES = "vocab.txt", "vocab.json", "merges.txt"
USUAL = {  # BERT, RoBERTa, Llama, GPT-2, Llama 3
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}


def import_tokenizer(folder: Path | str) -> Tokenizer | None:
    """Return the tokenizer of a Hugging Face folder, or None where it has no file of one.

    Raises:
        InputError: a file is damaged, is of a kind that is not known, or lets text produce control symbols.
    """
    folder = Path(folder)
    if (folder / MODEL_FILE).is_file():
        try:
            return sentencepiece_tokenizer((folder / MODEL_FILE).read_bytes())
        except ValueError as error:
            if not (folder / JSON_FILE).is_file():
                raise InputError(
                    f"{folder / MODEL_FILE} cannot be used ({error}), and there is no {JSON_FILE}; write one with "
                    "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                ) from error
    settings = _settings(folder)
    try:
        if (folder / JSON_FILE).is_file():
            content = (folder / JSON_FILE).read_bytes()
        elif (folder / VOCABULARY).is_file():
            content = _wordpiece(_text(folder / VOCABULARY), settings)
        elif (folder / GPT2_VOCABULARY).is_file() and (folder / GPT2_MERGES).is_file():
            content = _byte_level(_text(folder / GPT2_VOCABULARY), _text(folder / GPT2_MERGES), settings)
        else:
            return None
        return JsonTokenizer(content, _names(content, settings))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the tokenizer in {folder} cannot be used ({error}); take it from where it was made"
        ) from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, filled up from special_tokens_map.json."""
    found: dict[str, Any] = {}
    for name in (MAP_FILE, CONFIG_FILE):  # the later one wins, as in transformers
        path = folder / name
        if not path.is_file():
            continue
        try:
            table = json.loads(_text(path))
            if not isinstance(table, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); take it from where it was made") from error
        found |= {key: value for key, value in table.items() if value is not None}
    return found


def _names(content: bytes, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the control symbol for each role."""
    table = json.loads(content)
    ids, special = token_ids(table), control_names(table)
    named: dict[str, str] = {}
    stated = any(f"{role}_token" in settings for role in ROLES)
    for role in ROLES:
        value = settings.get(f"{role}_token")
        name = value.get("content") if isinstance(value, dict) else value
        if isinstance(name, str) and name in ids:  # transformers adds one that is not: a row the model does not have
            named[role] = name
        elif not stated:
            usual = next((name for name in USUAL[role] if name in special), None)
            if usual is not None:
                named[role] = usual
    if "unk" not in named and (unknown := unknown_id(table)) is not None:
        named["unk"] = next(name for name, token in ids.items() if token == unknown)
    if not stated and "cls" not in named and named.get("mask") == "<mask>":  # RoBERTa frames with <s> and </s>
        named |= {role: named[other] for role, other in (("cls", "bos"), ("sep", "eos")) if other in named}
    return named


def _special(name: str, token: int, **changed: bool) -> dict[str, Any]:
    """Return the entry of a control symbol in a tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **plain, **changed}


def _frame(pieces: Mapping[str, int], cls: str, sep: str, **settings: Any) -> dict[str, Any] | None:
    """Return how control symbols are put around a text; None where the vocabulary lacks them, as GPT-2's does."""
    if cls not in pieces or sep not in pieces:
        return None
    return {"cls": (cls, pieces[cls]), "sep": (sep, pieces[sep]), **settings}


def _wordpiece(vocabulary: str, settings: Mapping[str, Any]) -> bytes:
    """Return the tokenizer.json of a BERT vocabulary, one piece a line."""
    pieces = {piece: i for i, piece in enumerate(vocabulary.removesuffix("\n").split("\n"))}
    unknown = settings.get("unk_token", "[UNK]")
    table = {
        "version": "1.0",
        "added_tokens": [_special(name, pieces[name]) for names in USUAL.values() for name in names if name in pieces],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _frame(pieces, "[CLS]", "[SEP]", type="BertProcessing"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown if isinstance(unknown, str) else unknown["content"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": pieces,
        },
    }
    return json.dumps(table, ensure_ascii=False).encode()


def _byte_level(vocabulary: str, merges: str, settings: Mapping[str, Any]) -> bytes:
    """Return the tokenizer.json of a GPT-2 or RoBERTa vocabulary and its merges, a pair a line."""
    pieces = json.loads(vocabulary)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": bool(settings.get("add_prefix_space", False)),
        "trim_offsets": True,
        "use_regex": True,
    }
    table = {
        "version": "1.0",
        "added_tokens": [
            _special(name, pieces[name], lstrip=name == "<mask>")
            for name in sorted({name for names in USUAL.values() for name in names} & set(pieces), key=pieces.get)
        ],
        "pre_tokenizer": byte_level,
        "post_processor": _frame(
            pieces, "<s>", "</s>", type="RobertaProcessing", trim_offsets=True, add_prefix_space=False
        ),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": pieces,
            "merges": [line.split(" ") for line in merges.split("\n") if line and not line.startswith("#version")],
        },
    }
    return json.dumps(table, ensure_ascii=False).encode()
