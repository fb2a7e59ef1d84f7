"""Initial weights are those of the table in `init.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minillm.model.config import ModelConfig
from minillm.model.init import Undrawn
from minillm.model.transformer import Decoder, Encoder, build_model

L, C, STD = 8, 64, 0.05


def make(**choices: Any) -> Encoder | Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "context": 128,
        "num_layers": L,
        "width": C,
        "num_heads": 4,
        "init_std": STD,
    }
    return build_model(ModelConfig(**(shape | choices)))


def assert_drawn_from(weight: torch.Tensor, std: float, name: str) -> None:
    """Mean 0 and the given deviation, within five standard errors: a sample's deviation has std / sqrt(2 n)."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(n), name
    assert abs(weight.std().item() - std) < 5 * std / math.sqrt(2 * n), name


CHOICES = [
    pytest.param({}, id="gpt2"),
    pytest.param(
        {"kind": "encoder", "norm_position": "post", "head": "transform", "head_bias": True, "pooler": True}, id="bert"
    ),
    pytest.param({"activation": "swiglu", "norm": "rms_norm", "qk_norm": True, "tied_embeddings": False}, id="llama"),
    pytest.param({"position": "sinusoidal", "token_types": 50, "embedding_norm": True}, id="sinusoidal"),
]


@pytest.mark.parametrize("choices", CHOICES)
def test_every_parameter_follows_the_table(choices: dict[str, Any]) -> None:
    model = make(**choices)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith(("output.weight", "down.weight")) and model.config.norm_position == "pre":
            assert_drawn_from(parameter, STD / math.sqrt(2 * L), name)
        elif name == "embeddings.tokens.weight" and model.config.position == "sinusoidal":
            assert_drawn_from(parameter, 1 / math.sqrt(C), name)
        else:
            assert_drawn_from(parameter, STD, name)


def test_the_residual_stream_of_a_deep_model_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[float] = []
    for layers in (2, 32):
        model = make(num_layers=layers, position="none", mlp_width=64, vocab_size=16).eval()
        norm = model.final_norm
        assert norm is not None

        def measured(*inputs: Any, add: Any = norm.add) -> tuple[torch.Tensor, torch.Tensor]:
            y, stream = add(*inputs)
            sizes.append(stream.std().item())
            return y, stream

        monkeypatch.setattr(norm, "add", measured)
        with torch.no_grad():
            model(torch.arange(16)[None])
    assert 0.5 < sizes[1] / sizes[0] < 2


def test_the_seed_decides_the_weights() -> None:
    first, second = make(), make()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_tied_weights_are_one() -> None:
    tied, own = make(), make(tied_embeddings=False)
    assert tied.output_weight is tied.embeddings.tokens.weight
    assert own.output_weight is not own.embeddings.tokens.weight


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi"])
def test_undrawn_models_have_all_but_their_weights(position: Any) -> None:
    """Tables that are no parameters are made, and PyTorch's random state stays as it was."""
    config = ModelConfig(vocab_size=11, context=8, num_layers=2, width=8, num_heads=2, position=position)
    drawn = build_model(config)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Undrawn():
        model = build_model(config)
    assert torch.equal(torch.rand(3), expected)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in drawn.named_parameters()}
    tables = dict(model.named_buffers())
    assert tables.keys() == dict(drawn.named_buffers()).keys()
    assert all(torch.equal(tables[name], table) for name, table in drawn.named_buffers())
