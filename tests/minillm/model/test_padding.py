"""Padding and packing are storage: they change no hidden state of a real token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder, Encoder, build_model

POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "none"]
SIDES = ["encoder", "decoder"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped-window": {"num_kv_heads": 2, "window": 4, "global_every": 2},
    "post-norm": {"norm_position": "post", "embedding_norm": True, "token_types": 2, "activation": "geglu"},
}
LENGTHS = [8, 3, 1]


def make(kind: str, **choices: Any) -> Encoder | Decoder:
    """A small float64 model whose every parameter is random and large enough to matter."""
    shape: dict[str, Any] = {
        "kind": kind,
        "vocab_size": 29,
        "context": 16,
        "num_layers": 3,
        "width": 32,
        "num_heads": 4,
    }
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(shape | choices))).double()
    model.compute_in(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def texts() -> list[Tensor]:
    return [torch.randint(29, (1, length)) for length in LENGTHS]


def padded(rows: list[Tensor], left: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in a table of noise: `left` columns of padding before each, the rest of `width` behind it."""
    table = torch.randint(29, (len(rows), width))
    for number, row in enumerate(rows):
        table[number, left : left + row.shape[1]] = row
    return table, torch.full((len(rows),), left), torch.tensor([row.shape[1] for row in rows])


@pytest.mark.parametrize("choices", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_padding_on_either_side_changes_no_logit(kind: str, position: str, choices: str) -> None:
    model, rows = make(kind, position=position, **KINDS[choices]), texts()
    alone = [model.logits(row)[0] for row in rows]
    for left, width in [(0, 8), (0, 13), (5, 13), (2, 16)]:
        table, starts, lengths = padded(rows, left, width)
        logits = model.logits(table, starts=starts, lengths=lengths)
        for number, expected in enumerate(alone):
            there = logits[number, left : left + len(expected)]
            assert (there - expected).abs().max() < 1e-10, f"{left} left, {width} wide, row {number}"


@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_each_form_of_padding_is_optional(kind: str) -> None:
    model, rows = make(kind, position="learned"), texts()
    alone = [model.logits(row)[0] for row in rows]
    to_the_right, _, lengths = padded(rows, 0, 8)
    to_the_left = torch.cat([torch.cat([row.new_zeros(1, 8 - row.shape[1]), row], dim=1) for row in rows])
    right = model.logits(to_the_right, lengths=lengths)
    left = model.logits(to_the_left, starts=8 - lengths)
    for number, expected in enumerate(alone):
        assert (right[number, : len(expected)] - expected).abs().max() < 1e-10
        assert (left[number, 8 - len(expected) :] - expected).abs().max() < 1e-10


@torch.no_grad()
def test_a_row_of_padding_alone_gives_no_nan() -> None:
    for kind in SIDES:
        hidden = make(kind)(torch.zeros(2, 3, dtype=torch.int64), lengths=torch.tensor([0, 3]))
        assert hidden.isfinite().all()


@pytest.mark.parametrize("choices", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_a_packed_document_gives_what_it_gives_alone(kind: str, position: str, choices: str) -> None:
    model, rows = make(kind, position=position, **KINDS[choices]), texts()
    packed = torch.cat(rows, dim=1)  # (1, 12)
    segments = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)], dim=1)
    positions = torch.cat([torch.arange(row.shape[1])[None] for row in rows], dim=1)
    logits = model.logits(packed, segments=segments, positions=positions)
    alone = torch.cat([model.logits(row) for row in rows], dim=1)
    assert (logits - alone).abs().max() < 1e-10


@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_packed_documents_may_have_padding_too(kind: str) -> None:
    model, rows = make(kind, position="rotary"), texts()
    packed = torch.cat([*rows, torch.randint(29, (1, 3))], dim=1)  # (1, 15)
    # the padding has the number of the last document: only `lengths` keeps it out
    numbers = torch.tensor([[0] * 8 + [1] * 3 + [2] * 4])
    positions = torch.cat([torch.arange(row.shape[1])[None] for row in rows] + [torch.zeros(1, 3).long()], dim=1)
    logits = model.logits(packed, segments=numbers, positions=positions, lengths=torch.tensor([12]))
    alone = torch.cat([model.logits(row) for row in rows], dim=1)
    assert (logits[:, :12] - alone).abs().max() < 1e-10


@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_only_a_decoder_is_blind_to_what_comes_later(kind: str) -> None:
    model = make(kind)
    row = torch.arange(6)[None]
    change = (model(row)[:, :5] - model(torch.cat([row[:, :5], row[:, :1]], dim=1))[:, :5]).abs().max()
    assert (change == 0) if kind == "decoder" else (change > 1e-3)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi"])
@torch.no_grad()
def test_order_matters_to_an_encoder_with_positions(position: str) -> None:
    model, row = make("encoder", position=position), torch.arange(6)[None]
    turned = row.roll(2, dims=1)  # not flipped: ALiBi looks the same from both sides
    assert (model(row).sum(1) - model(turned).sum(1)).abs().max() > 1e-3


@torch.no_grad()
def test_order_does_not_matter_to_an_encoder_without() -> None:
    model, row = make("encoder", position="none"), torch.arange(6)[None]
    assert (model(row).flip(1) - model(row.flip(1))).abs().max() < 1e-10


@torch.no_grad()
def test_the_pooler_reads_the_first_real_token() -> None:
    model, rows = make("encoder", pooler=True), texts()
    table, starts, lengths = padded(rows, 3, 12)
    pooled = model.pooled(model(table, starts=starts, lengths=lengths), starts)
    alone = torch.cat([model.pooled(model(row)) for row in rows])
    assert (pooled - alone).abs().max() < 1e-10
