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
tokenizer.json goes out as it came, with the files that it came with, and so does in transformers what it did before.

Read next: `../../tokenizer/hf.py`, the way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.tokenizer.base import NAMES, Tokenizer
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.hf import control_entry
from minillm.tokenizer.json_file import BYTE_OF, CONFIG_FILE, JSON_FILE, MAP_FILE, ROLES, JsonTokenizer
from minillm.tokenizer.pieces import MODEL_FILE, SPACE, BPETokenizer, SentencePieceTokenizer

BYTES = 256  # sentencepiece's pieces for bytes, right after the control symbols
UNREACHABLE = 1000.0  # a control symbol's score lies this far below that of any piece of text


def tokenizer_files(tokenizer: Tokenizer, model: ModelConfig, *, max_length: int | None = None) -> Mapping[str, bytes]:
    """Return the content of the files that make transformers and llama.cpp give this tokenizer's ids, by name.

    Args:
        tokenizer: of any kind. One that came as a tokenizer.json goes out as it came, byte for byte, with the files
            that it came with.
        model: what the files stand beside. Texts are framed as the model reads them (`Tokenizer.frame`), but that a
            decoder with its output weight is to go on with a text, which therefore does not end with eos. It does not
            change an imported tokenizer.
        max_length: tokens that transformers cuts texts to when it is asked to cut; None: the model's context.
    Raises:
        InputError: the tokenizer is of a kind that has no such file.
    """
    names = {role: tokenizer.piece(token) for role in ROLES if (token := getattr(tokenizer.specials, role)) is not None}
    symbols = {f"{role}_token": name for role, name in names.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it stands
        "model_max_length": model.context if max_length is None else max_length,
        "clean_up_tokenization_spaces": False,
        # left for who goes on with texts; else GPT-2 would count the positions of a text behind padding from its start
        "padding_side": "left" if _goes_on(model) else "right",
        "model_input_names": ["input_ids", "attention_mask"] + ["token_type_ids"] * (model.token_types > 0),
        **symbols,
    }
    if isinstance(tokenizer, JsonTokenizer):
        came = tokenizer.beside()
        made = {} if CONFIG_FILE in came else {CONFIG_FILE: _json(config), MAP_FILE: _json(symbols)}
        return {**made, **came, JSON_FILE: tokenizer.files()[JSON_FILE]}
    config["split_special_tokens"] = model.kind == "decoder" or model.head == "none"
    if model.kind == "decoder":  # llama.cpp reads these
        config |= {"add_prefix_space": False, "add_bos_token": True, "add_eos_token": not _goes_on(model)}
    table = tokenizer_json(tokenizer) | {"post_processor": _post_processor(tokenizer, model)}
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
    table["added_tokens"] = [
        control_entry(name, token, lstrip=name == "[MASK]")  # the space before it is a part of the hidden piece
        for token, name in enumerate(NAMES)
    ]
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


def _spaces() -> dict[str, Any]:
    """Return how sentencepiece writes a space, and how bytes, which may be such a space, and it come back."""
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, back]},
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


def _post_processor(tokenizer: Tokenizer, model: ModelConfig) -> dict[str, Any]:
    """Return the template of control symbols around one text, and around two."""
    left_out = tokenizer.specials.eos if _goes_on(model) else None
    templates: dict[str, list[dict[str, Any]]] = {}
    used: dict[int, str] = {}
    for name in ("single", "pair"):
        templates[name] = []
        for place, kind in tokenizer.frame(model.kind, pair=name == "pair").places():
            type_id = kind if model.token_types > 1 else 0
            if isinstance(place, str):
                templates[name].append({"Sequence": {"id": place, "type_id": type_id}})
            elif place != left_out:
                used[place] = tokenizer.piece(place)
                templates[name].append({"SpecialToken": {"id": used[place], "type_id": type_id}})
    symbols = {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in used.items()}
    return {"type": "TemplateProcessing", **templates, "special_tokens": symbols}


def _goes_on(model: ModelConfig) -> bool:
    """Return whether a model continues texts: such a text must not be ended before."""
    return model.kind == "decoder" and model.head != "none"
