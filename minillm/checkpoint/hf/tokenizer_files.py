"""A tokenizer as the files that transformers and llama.cpp read, so that they give the same ids.

    tokenizer.json            all kinds. sentencepiece's BPE and unigram, bytes and characters are each a model of the
                              `tokenizers` library; see `_bpe` and `_unigram`
    tokenizer.model           a decoder's sentencepiece BPE: llama.cpp's converter takes it for Llama, Mistral and Qwen
    tokenizer_config.json     the class that takes tokenizer.json as it stands, the control symbols, the longest text
    special_tokens_map.json   the control symbols again, for older readers

Control symbols in text. Here "</s>" in a text is four characters. transformers makes the symbol of it, unless
`split_special_tokens` is set; so it is set, for every model but one with a masked-LM head: the fill-mask pipeline finds
its hole by "[MASK]" in the text. Who feeds such a model with text from strangers says split_special_tokens=True to the
tokenizer. llama.cpp decides it in each call (`parse_special`, false by default). A tokenizer that came as a
tokenizer.json goes out as it came, and in transformers its control symbols are found in text, as they were before.

Read next: `../../tokenizer/hf.py`, the way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.tokenizer.base import NAMES, Specials, Tokenizer
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.hf import CONFIG_FILE, MAP_FILE
from minillm.tokenizer.json_file import BYTE_OF, JSON_FILE, ROLES, JsonTokenizer
from minillm.tokenizer.pieces import MODEL_FILE, SPACE, BPETokenizer, SentencePieceTokenizer

BYTES = 256  # sentencepiece's pieces for bytes, right after the control symbols
UNREACHABLE = 1000.0  # a control symbol's score lies this far below that of any piece of text


def tokenizer_files(tokenizer: Tokenizer, model: ModelConfig) -> Mapping[str, bytes]:
    """Return the content of the files that make transformers and llama.cpp give this tokenizer's ids, by name.

    Args:
        tokenizer: of any kind. One that came as a tokenizer.json goes out as it came, byte for byte.
        model: what the files stand beside: an encoder's texts are framed by cls and sep, a decoder's begin with bos,
            as they did in training, and `context` is their length at most. It does not change an imported one's frame.
    Raises:
        InputError: the tokenizer is of a kind that has no such file.
    """
    names = {role: tokenizer.piece(token) for role in ROLES if (token := getattr(tokenizer.specials, role)) is not None}
    symbols = {f"{role}_token": name for role, name in names.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it stands
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left" if model.kind == "decoder" else "right",
        "model_input_names": ["input_ids", "attention_mask"] + ["token_type_ids"] * (model.token_types > 0),
        **symbols,
    }
    if isinstance(tokenizer, JsonTokenizer):
        return {JSON_FILE: tokenizer.files()[JSON_FILE], CONFIG_FILE: _json(config), MAP_FILE: _json(symbols)}
    config["split_special_tokens"] = model.kind == "decoder" or model.head == "none"
    if model.kind == "decoder":  # llama.cpp reads these
        config |= {"add_prefix_space": False, "add_bos_token": True, "add_eos_token": False}
    table = tokenizer_json(tokenizer) | {"post_processor": _frame(tokenizer.specials, names, model)}
    files = {JSON_FILE: _json(table), CONFIG_FILE: _json(config), MAP_FILE: _json(symbols)}
    if isinstance(tokenizer, BPETokenizer):
        files[MODEL_FILE] = tokenizer.files()[MODEL_FILE]
    return files


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json, without the frame of control symbols, for a tokenizer that was made here.

    Raises:
        InputError: the tokenizer is of a kind that has no such file.
    """
    table: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    table["added_tokens"] = [_control(token, name) for token, name in enumerate(NAMES)]
    table |= {"normalizer": None, "pre_tokenizer": None}
    match tokenizer:
        case BPETokenizer():
            table |= _spaces() | {"model": _bpe(tokenizer)}
        case SentencePieceTokenizer():
            model, missing = _unigram(tokenizer)
            table |= _spaces() | {"model": model}
            if missing:
                table["pre_tokenizer"] = _apart(missing)
        case ByteTokenizer():
            letters = sorted(BYTE_OF, key=BYTE_OF.__getitem__)
            byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
            table["model"] = _table_of_pieces([*NAMES, *letters], byte_fallback=False)
            table |= {"pre_tokenizer": byte_level, "decoder": byte_level}
        case CharacterTokenizer():
            table["model"] = _table_of_pieces([*NAMES, *tokenizer.alphabet], byte_fallback=False)
            table["decoder"] = {"type": "Fuse"}
        case _:
            raise InputError(f"a tokenizer of the kind {tokenizer.kind} has no form that transformers reads")
    return table


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode()


def _control(token: int, name: str) -> dict[str, Any]:
    """Return the entry of a control symbol; the mask takes the space before it, which is a part of the hidden piece."""
    plain = {"single_word": False, "lstrip": name == "[MASK]", "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **plain}


def _spaces() -> dict[str, Any]:
    """Return how sentencepiece writes a space, and how it and bytes come back."""
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]},
    }


def _bpe(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return sentencepiece's BPE as a list of merges, best first.

    sentencepiece joins the two neighbours whose piece has the best score; a list of merges says the same when every
    way to make a piece of two others stands where the piece's score puts it.
    """
    pieces = tokenizer.vocabulary()
    ids = {piece: token for token, (piece, _) in enumerate(pieces)}
    text = {piece for piece in ids if ids[piece] >= len(NAMES) + BYTES}
    by_score = sorted((piece for piece in text if len(piece) > 1), key=lambda piece: -pieces[ids[piece]][1])
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in by_score
        for cut in range(1, len(piece))
        if piece[:cut] in text and piece[cut:] in text
    ]
    return _table_of_pieces([piece for piece, _ in pieces], byte_fallback=True) | {"merges": merges}


def _table_of_pieces(pieces: list[str], *, byte_fallback: bool) -> dict[str, Any]:
    """Return a BPE model without merges: every character is a piece, or the bytes that it has, or unk."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": NAMES[0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": [],
    }


def _unigram(tokenizer: SentencePieceTokenizer) -> tuple[dict[str, Any], str]:
    """Return sentencepiece's unigram model, and the characters of control names that it has no piece for.

    The library, unlike sentencepiece, would take "<s>" or "<0x0A>" in a text for the symbol or the byte. A score below
    that of any text keeps it from that, as long as there is another way to write the name: where a character of it has
    no piece, `_apart` cuts the name there.
    """
    pieces = tokenizer.vocabulary()
    first = len(NAMES) + BYTES
    lowest = min((score for _, score in pieces[first:]), default=0.0)
    known = {piece for piece, _ in pieces[first:]}
    scored = [[piece, score if token >= first else lowest - UNREACHABLE] for token, (piece, score) in enumerate(pieces)]
    missing = "".join(sorted(set("".join(NAMES) + "<0x123456789ABCDEF>") - known))
    return {"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": True}, missing


def _apart(characters: str) -> dict[str, Any]:
    """Return the step that makes each of these characters a word of its own; unknown ones are no part of any piece."""
    listed = "".join(f"\\{c}" if c in "[]\\^-" else c for c in characters)
    return {"type": "Split", "pattern": {"Regex": f"[{listed}]"}, "behavior": "Isolated", "invert": False}


def _frame(specials: Specials, names: Mapping[str, str], model: ModelConfig) -> dict[str, Any]:
    """Return the template of control symbols around one text, and around two."""
    before, after = (["bos"], []) if model.kind == "decoder" else (["cls"], ["sep"])

    def symbols(roles: list[str], kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[role], "type_id": kind}} for role in roles]

    second = int(model.token_types > 1)
    single = [*symbols(before, 0), {"Sequence": {"id": "A", "type_id": 0}}, *symbols(after, 0)]
    used = {names[role]: getattr(specials, role) for role in before + after}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": second}}, *symbols(after, second)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in used.items()},
    }
