"""A cache saves work and changes nothing else: hidden states, and the text that is written with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from minillm.generate import GenerateConfig, generate
from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.tokenizer.base import Specials, Tokenizer

POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "none"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "multi-query-window": {"num_kv_heads": 1, "window": 3, "global_every": 2},
    "window-everywhere-softcap": {"num_kv_heads": 2, "window": 4, "global_every": 0, "attention_softcap": 2.0},
    "post-norm-rms-swiglu": {"norm_position": "post", "norm": "rms_norm", "activation": "swiglu", "qk_norm": True},
    "embedding-norm-types": {"embedding_norm": True, "token_types": 2, "bias": False},
}


def decoder(dtype: torch.dtype, **choices: Any) -> Decoder:
    """A small decoder whose every parameter is random and large enough to matter."""
    shape: dict[str, Any] = {"vocab_size": 53, "context": 256, "num_layers": 3, "width": 32, "num_heads": 4}
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(shape | choices))).to(dtype)
    model.compute_in(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert isinstance(model, Decoder)
    return model.eval()


def fed_in_chunks(model: Decoder, tokens: Tensor, starts: Tensor | None, chunks: Sequence[int]) -> Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1])
    parts = [model(part, starts=starts, cache=cache) for part in tokens.split(list(chunks), dim=1)]
    assert cache.length == tokens.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_prompts_of_unequal_length_in_chunks_give_what_each_gives_alone(position: str, kind: str) -> None:
    model = decoder(torch.float64, position=position, **KINDS[kind])
    starts = torch.tensor([0, 3, 7])  # the last row begins after the first chunk
    tokens = torch.randint(53, (3, 13))
    chunked = fed_in_chunks(model, tokens, starts, (5, 1, 1, 4, 1, 1))
    for row, start in enumerate(starts.tolist()):
        alone = model(tokens[row : row + 1, start:])[0]
        assert (chunked[row, start:] - alone).abs().max() < 1e-10


@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (8, 1), (1, 8), (2, 3, 4)], ids=str)
@torch.no_grad()
def test_any_cut_gives_the_same(chunks: tuple[int, ...]) -> None:
    model = decoder(torch.float64, position="rotary", num_kv_heads=2, window=3, global_every=2)
    tokens = torch.randint(53, (2, 9))
    assert (fed_in_chunks(model, tokens, None, chunks) - model(tokens)).abs().max() < 1e-10


@torch.no_grad()
def test_one_token_of_a_model_of_one_of_everything() -> None:
    model = decoder(torch.float64, vocab_size=1, context=1, num_layers=1, width=1, num_heads=1)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(fed_in_chunks(model, tokens, None, (1,)), model(tokens))


def greedy(model: Decoder, tokens: Tensor, starts: Tensor, steps: int) -> Tensor:
    """The likeliest next token, step by step, without a cache: (B, steps)."""
    T = tokens.shape[1]
    for _ in range(steps):
        likeliest = model.project(model(tokens, starts=starts)[:, -1]).argmax(dim=-1)
        tokens = torch.cat([tokens, likeliest[:, None]], dim=1)
    return tokens[:, T:]


class Letters:
    """The least that `generate` needs of a tokenizer: token 17 is the letter U+0111."""

    vocab_size = 53
    specials = Specials()
    frame, control_ids = Tokenizer.frame, Tokenizer.control_ids

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 0x100 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x100 + token) for token in ids)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_the_same_200_tokens_in_float32(position: str) -> None:
    choices: dict[str, Any] = {
        "num_layers": 2,
        "num_kv_heads": 2,
        "window": 8,
        "global_every": 2,
        "tied_embeddings": False,
    }
    model = decoder(torch.float32, position=position, **choices)
    prompts = [torch.randint(53, (length,)).tolist() for length in (6, 1, 4)]
    starts = torch.tensor([6 - len(prompt) for prompt in prompts])
    tokens = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    plain = greedy(model, tokens, starts, 200)
    assert max(len(row.unique()) for row in plain) > 5  # else equal texts would say little
    letters = Letters()
    config = GenerateConfig(temperature=0.0, max_tokens=200)
    texts = generate(model, cast(Tokenizer, letters), [letters.decode(prompt) for prompt in prompts], config)
    assert [text.text for text in texts] == [letters.decode(row) for row in plain.tolist()]


def test_a_full_cache_says_so() -> None:
    model = decoder(torch.float32)
    cache = model.new_cache(1, 3)
    with pytest.raises(ValueError, match="room for 3 tokens, got 4"):
        model(torch.zeros(1, 4, dtype=torch.int64), cache=cache)


def test_a_cache_beyond_the_context_says_so() -> None:
    model = decoder(torch.float32, context=4)
    cache = model.new_cache(1, 8)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="5 tokens do not fit the model's context of 4"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)


def test_what_a_cache_does_not_go_with() -> None:
    model, row = decoder(torch.float32), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="not with lengths or segments"):
        model(row, cache=model.new_cache(1, 2), lengths=torch.tensor([2]))
    encoder = build_model(ModelConfig(kind="encoder", vocab_size=5, context=4, num_layers=1, width=8, num_heads=2))
    assert isinstance(encoder, Encoder)
    with pytest.raises(ValueError, match="an encoder has no cache"):
        encoder(row, cache=model.new_cache(1, 2))
