"""A text with holes in, the likeliest pieces for each hole out.

Text can never produce a control symbol, so `fill` splits on "[MASK]" itself and puts the symbol between the parts:

    "The [MASK] sat."  ->  cls The <mask> ▁sat . sep

Pieces of sentencepiece, and of GPT-2, carry the space before them: the mask stands for "▁cat", and the space before
[MASK] belongs to the hole. It is therefore taken off the text; " [MASK]" and "[MASK]" after a word ask for the same,
and the filled text shows which of the two the model meant.

Read next: `evaluate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minillm.errors import InputError
from minillm.evaluate import check_finite, inference
from minillm.model.transformer import Decoder, Encoder
from minillm.tokenizer.base import Tokenizer

MASK = "[MASK]"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One piece for a hole. piece: as `Tokenizer.piece` shows it; probability: among all V tokens, in [0, 1]."""

    piece: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Filled:
    """text: with the likeliest piece in each hole, each chosen without knowing the others.
    holes: the candidates of each [MASK], likeliest first.
    """

    text: str
    holes: list[list[Candidate]]


def fill(model: Encoder | Decoder, tokenizer: Tokenizer, text: str, top_k: int = 5) -> Filled:
    """Return the likeliest pieces for every [MASK] in a text.

    Args:
        model: an encoder; its mode and device stay as they are.
        tokenizer: the one that the model was trained with.
        text: with "[MASK]" once or more; read as a document of its own.
        top_k: candidates per hole; control symbols are none.
    Raises:
        InputError: a decoder, a tokenizer without a mask symbol, no [MASK], a text longer than the model's context,
            top_k below 1, or a model whose logits are not finite.

    Cost: one pass over the text; only the holes enter the head.
    """
    if not isinstance(model, Encoder):
        raise InputError("fill needs an encoder, this model is a decoder; use generate, with a prompt to continue")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}")
    if tokenizer.specials.mask is None:
        raise InputError("fill needs a tokenizer with a mask symbol, this one has none; train an encoder with its own")
    tokens, holes = tokens_with_holes(tokenizer, text)
    if len(tokens) > model.config.context:
        raise InputError(
            f"the text has {len(tokens)} tokens, the model's context is {model.config.context}; shorten it"
        )
    device = model.output_weight.device
    with inference(model):
        hidden = model(torch.tensor([tokens], device=device))  # (1, T, C)
        logits = model.project(hidden[0, holes]).float()  # (holes, V)
    check_finite(logits)
    shares = logits.softmax(dim=-1)  # (holes, V)
    shares[:, tokenizer.vocab_size :] = -1.0  # rows of the output weight that stand for no token
    control = sorted(tokenizer.control_ids())
    shares[:, control] = -1.0  # below the share of any piece, also of one that is rounded to 0
    best = shares.topk(min(top_k, tokenizer.vocab_size - len(control)))
    for hole, token in zip(holes, best.indices[:, 0].tolist(), strict=True):
        tokens[hole] = token
    return Filled(
        text=tokenizer.decode(tokens),
        holes=[
            [
                Candidate(piece=tokenizer.piece(token), probability=share)
                for token, share in zip(row, row_shares, strict=True)
            ]
            for row, row_shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
    )


def tokens_with_holes(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a text with the mask symbol for each [MASK], framed, and where the masks stand.

    Raises:
        InputError: no [MASK] in the text.
    """
    *before, last = text.split(MASK)
    if not before:
        raise InputError(f"the text has no {MASK}; write {MASK} where a piece is to be found")
    mask = tokenizer.specials.mask
    assert mask is not None
    frame = tokenizer.frame("encoder")
    tokens = [*frame.before]
    holes = []
    for part in before:
        if tokenizer.carries_the_space:
            part = part.removesuffix(" ")
        tokens += tokenizer.encode(part)
        holes.append(len(tokens))
        tokens.append(mask)
    tokens += tokenizer.encode(last)
    return [*tokens, *frame.after], holes
