"""The presets are the models that they say they are, and train."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import minillm.model
from minillm.config import build
from minillm.model.config import ModelConfig
from minillm.model.count import count_parameters
from minillm.model.transformer import Decoder, Encoder, build_model

FOLDER = Path(minillm.model.__file__).parent.parent / "presets"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.toml"))
TOKENIZER_SIZE = 2048  # of the tiny presets, whose [model] leaves the number to the tokenizer


def preset(name: str) -> ModelConfig:
    config: ModelConfig = build(ModelConfig, tomllib.loads((FOLDER / f"{name}.toml").read_text())["model"])
    return config if config.vocab_size else dataclasses.replace(config, vocab_size=TOKENIZER_SIZE)


# What the tiny ones have, by hand: table, 4 x (attention, two head norms, three linear layers of 384, two norms), norm;
# the encoder's transform (dense without bias, norm) and a bias per token.
TINY = 2048 * 128 + 4 * (4 * 128**2 + 2 * 32 + 3 * 128 * 384 + 2 * 128) + 128
COUNTS = {
    "gpt2-124m": 124_439_808,  # the released checkpoint
    "bert-base": 109_482_240,  # the released checkpoint: body and pooler
    "modernbert-base": 149_655_232,  # the released checkpoint: body and head, which is tied to the table
    "llama-125m": 32000 * 768 + 16 * (2 * 768**2 + 2 * 768 * 256 + 3 * 768 * 2048 + 2 * 768) + 768,
    "tiny-decoder": TINY,
    "tiny-encoder": TINY + 128**2 + 128 + 2048,
}


def test_every_preset_is_counted_here() -> None:
    assert sorted(COUNTS) == PRESETS
    assert COUNTS["llama-125m"] == 125_264_640


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name: str) -> None:
    config = preset(name)
    if name == "bert-base":  # its published number is without the masked-LM head
        config = dataclasses.replace(config, head="none", head_bias=False)
    with torch.device("meta"):
        assert count_parameters(build_model(config)) == COUNTS[name]


def step(model: Encoder | Decoder, tokens: torch.Tensor) -> None:
    """One forward and backward pass, and one step of plain gradient descent, which must lower the loss."""
    model.eval()  # dropout would blur the comparison; the training mode is the second half
    targets = tokens.roll(-1, dims=1).flatten()

    def loss() -> torch.Tensor:
        hidden = model(tokens, seed=1)
        value = F.cross_entropy(model.project(hidden).flatten(0, 1), targets)
        return value if model.pooler is None else value + model.pooled(hidden).square().mean()

    before = loss()
    before.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            parameter -= 1e-2 * parameter.grad
        assert loss() < before
        model.train()
        assert loss().isfinite()


@pytest.mark.parametrize("name", PRESETS)
def test_one_step_at_a_size_that_fits_a_test(name: str) -> None:
    config = preset(name)
    small = dataclasses.replace(
        config,
        vocab_size=97,
        context=24,
        num_layers=4,
        width=48,
        num_heads=6,
        num_kv_heads=None if config.num_kv_heads is None else 6 * config.num_kv_heads // config.num_heads,
        mlp_width=None if config.mlp_width is None else 72,
        window=None if config.window is None else 6,
    )
    torch.manual_seed(0)
    step(build_model(small), torch.randint(97, (3, 24)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_one_step_at_full_size(name: str) -> None:
    torch.manual_seed(0)
    config = preset(name)
    step(build_model(config), torch.randint(config.vocab_size, (2, 8)))
