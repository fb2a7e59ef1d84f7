"""The tokenizer of a Hugging Face folder: which file it is in, and what its control symbols are called.

    tokenizer.model     one that `minillm export` wrote: read as what it was
    tokenizer.json      all else that is current
    vocab.txt           BERT's WordPiece from before tokenizer.json
    vocab.json + merges.txt   GPT-2's byte-level BPE from before tokenizer.json

What its control symbols are called is in tokenizer_config.json and special_tokens_map.json. A role that both are silent
about has the name that the tokenizer's class gives it; where the class is not said or not known, the usual one that the
tokenizer has as a special token. `null` says that there is none. Tokens that are in added_tokens.json or in
`added_tokens_decoder` alone are added to those of the file.

Read next: `../checkpoint/hf/tokenizer_files.py`, the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.errors import InputError
from minillm.tokenizer.base import Tokenizer
from minillm.tokenizer.json_file import (
    ADDED_FILE,
    CONFIG_FILE,
    GPT2_MERGES,
    GPT2_VOCABULARY,
    JSON_FILE,
    MAP_FILE,
    ROLES,
    VOCABULARY,
    JsonTokenizer,
    control_names,
    files_beside,
    token_ids,
    unknown_id,
)
from minillm.tokenizer.pieces import MODEL_FILE, sentencepiece_tokenizer

USUAL = {  # BERT, RoBERTa, Llama, GPT-2, Llama 3
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
BERT = {"unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"}
ROBERTA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
QWEN2 = {"unk": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}
LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
OF_CLASS: Mapping[str, Mapping[str, str]] = {  # what transformers' classes, without "Fast", call their control symbols
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "RobertaTokenizer": ROBERTA,
    "GPT2Tokenizer": GPT2,
    "LlamaTokenizer": LLAMA,
    "Qwen2Tokenizer": QWEN2,
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
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
        content = _with_added(content, settings)
        return JsonTokenizer(content, _names(content, settings), files_beside(folder))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the tokenizer in {folder} cannot be used ({error}); take it from where it was made"
        ) from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, filled up from the files that went with it before `added_tokens_decoder`."""
    found = _table(folder / CONFIG_FILE)
    if "added_tokens_decoder" in found:  # then transformers does not open the others
        return found
    found |= _table(folder / MAP_FILE)
    roles = {_name(found.get(f"{role}_token")) for role in ROLES}
    added = _table(folder / ADDED_FILE)
    return found | {
        "added_tokens_decoder": {
            token: {"content": name, "special": name in roles, "normalized": name not in roles}
            for name, token in added.items()
        }
    }


def _table(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; there is none: an empty one."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(_text(path))
        if not isinstance(table, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); take it from where it was made") from error
    return table


def _name(value: Any) -> str | None:
    """Return the name of a control symbol, which may be an object with settings."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def _names(content: bytes, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the control symbol for each role."""
    table = json.loads(content)
    ids, special = token_ids(table), control_names(table)
    usual = {role: next((name for name in USUAL[role] if name in special), None) for role in ROLES}
    if usual["mask"] == "<mask>":  # RoBERTa frames with <s> and </s>
        usual |= {"cls": usual["cls"] or usual["bos"], "sep": usual["sep"] or usual["eos"]}
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    stated = any(f"{role}_token" in settings for role in ROLES)
    guessed: Mapping[str, str | None] = OF_CLASS.get(kind, usual) if stated or OF_CLASS.get(kind) else usual
    if padding := table.get("padding"):  # rows that the file itself wants filled
        guessed = {"pad": padding["pad_token"], **guessed}
    named: dict[str, str] = {}
    for role in ROLES:
        key = f"{role}_token"
        name = _name(settings[key]) if key in settings else guessed.get(role)
        if name in ids:  # transformers adds one that is not: a row the model does not have
            named[role] = name
    if "unk" not in named and (unknown := unknown_id(table)) is not None:
        named["unk"] = next(name for name, token in ids.items() if token == unknown)
    return named


def _with_added(content: bytes, settings: Mapping[str, Any]) -> bytes:
    """Return a tokenizer.json with the tokens that only other files have.

    Raises:
        ValueError: one has the number of another token, or the numbers have a gap: transformers would number it anew.
    """
    table = json.loads(content)
    ids = token_ids(table)
    listed = {int(token): entry for token, entry in settings["added_tokens_decoder"].items()}
    missing = {token: entry for token, entry in sorted(listed.items()) if entry["content"] not in ids}
    if not missing:
        return content
    following = max(ids.values()) + 1
    for token, entry in missing.items():
        if token != following:
            raise ValueError(f"the added token {entry['content']!r} is number {token}, and {following} is the next one")
        following += 1
    added = [control_entry(entry["content"], token, **_flags(entry)) for token, entry in missing.items()]
    return json.dumps(
        table | {"added_tokens": [*(table.get("added_tokens") or ()), *added]}, ensure_ascii=False
    ).encode()


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    """Return how an added token is found in text, as transformers fills up what an entry does not say."""
    special = bool(entry.get("special", False))
    found = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    return {**found, "normalized": bool(entry.get("normalized", not special)), "special": special}


def control_entry(name: str, token: int, **changed: bool) -> dict[str, Any]:
    """Return the entry of a control symbol in a tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **plain, **changed}


def _frame(pieces: Mapping[str, int], cls: str, sep: str, **settings: Any) -> dict[str, Any] | None:
    """Return how control symbols are put around a text; None where the vocabulary lacks them, as GPT-2's does."""
    if cls not in pieces or sep not in pieces:
        return None
    return {"cls": (cls, pieces[cls]), "sep": (sep, pieces[sep]), **settings}


def _bos_and_eos(pieces: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return GPT-2's frame: before each text bos, after it eos, where tokenizer_config.json asks for them."""
    asked = {role: _name(settings.get(f"{role}_token", GPT2[role])) for role in ("bos", "eos")}
    names = {role: name for role, name in asked.items() if settings.get(f"add_{role}_token") and name in pieces}

    def around(text: str, kind: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": names[role], "type_id": kind}}] if role in names else [] for role in asked
        )
        return [*before, {"Sequence": {"id": text, "type_id": kind}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [pieces[name]], "tokens": [name]} for name in names.values() if name is not None
        },
    }


def _wordpiece(vocabulary: str, settings: Mapping[str, Any]) -> bytes:
    """Return the tokenizer.json of a BERT vocabulary, one piece a line."""
    pieces = {piece: i for i, piece in enumerate(vocabulary.removesuffix("\n").split("\n"))}
    unknown = settings.get("unk_token", "[UNK]")
    table = {
        "version": "1.0",
        "added_tokens": [
            control_entry(name, pieces[name]) for names in USUAL.values() for name in names if name in pieces
        ],
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
            control_entry(name, pieces[name], lstrip=name == "<mask>")
            for name in sorted({name for names in USUAL.values() for name in names} & set(pieces), key=pieces.get)
        ],
        "pre_tokenizer": byte_level,
        "post_processor": _frame(
            pieces, "<s>", "</s>", type="RobertaProcessing", trim_offsets=True, add_prefix_space=False
        )
        or _bos_and_eos(pieces, settings),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": pieces,
            "merges": [line.split(" ") for line in merges.split("\n") if line and not line.startswith("#version")],
        },
    }
    return json.dumps(table, ensure_ascii=False).encode()
