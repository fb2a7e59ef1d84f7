"""Numbers of parameters and operations, against hand counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.model.config import ModelConfig
from minillm.model.count import count_parameters, flops_per_token
from minillm.model.transformer import Decoder, Encoder, build_model

SMALL: dict[str, Any] = {"vocab_size": 11, "context": 16, "num_layers": 2, "width": 8, "num_heads": 2}
# q, k, v, output: 4 x 8 x 8; up, down: 2 x 8 x 32; two layers; output weight 11 x 8
BODY, TOP = 2 * (4 * 64 + 2 * 8 * 32), 11 * 8


def model_of(**choices: Any) -> Encoder | Decoder:
    return build_model(ModelConfig(**(SMALL | choices)))


def test_a_tied_table_counts_once() -> None:
    # biases 2 x (4 x 8 + 32 + 8), norms 5 x 16, positions 16 x 8
    assert count_parameters(model_of()) == 11 * 8 + 16 * 8 + BODY + 2 * 72 + 5 * 16
    assert count_parameters(model_of(tied_embeddings=False)) - count_parameters(model_of()) == 11 * 8


@pytest.mark.parametrize(
    "choices, length, share, expected",
    [
        pytest.param({}, 5, 1.0, 6 * (BODY + TOP) + 12 * 2 * 8 * 5, id="plain"),
        pytest.param({"tied_embeddings": False}, 5, 1.0, 6 * (BODY + TOP) + 12 * 2 * 8 * 5, id="untied"),
        pytest.param({}, 1, 0.25, 6 * (BODY + TOP / 4) + 12 * 2 * 8, id="a quarter enters the head"),
        pytest.param(
            {"window": 4, "global_every": 2}, 10, 1.0, 6 * (BODY + TOP) + 12 * 8 * (10 + 4), id="window in one layer"
        ),
        pytest.param({"head": "none"}, 5, 1.0, 6 * BODY + 12 * 2 * 8 * 5, id="no head"),
        pytest.param({"head": "transform"}, 5, 1.0, 6 * (BODY + TOP + 64) + 12 * 2 * 8 * 5, id="transform"),
        pytest.param({"num_kv_heads": 1}, 5, 1.0, 6 * (BODY - 2 * 2 * 8 * 4 + TOP) + 12 * 2 * 8 * 5, id="one key head"),
        pytest.param(
            {"head_width": 3}, 5, 1.0, 6 * (BODY - 2 * 4 * 8 * 2 + TOP) + 12 * 2 * 6 * 5, id="head width of its own"
        ),
    ],
)
def test_operations_by_hand(choices: dict[str, Any], length: int, share: float, expected: float) -> None:
    assert flops_per_token(model_of(**choices), length, head_share=share) == expected


def test_operations_as_pytorch_counts_them() -> None:
    """Forward alone is a third of it; an encoder, since the count does not halve what a causal mask hides."""
    model, tokens = model_of(kind="encoder").eval(), torch.zeros(3, 7, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(tokens)
    products = 2 * (BODY + TOP) * 21
    counted = counter.get_total_flops()
    assert counted in (products, 21 * flops_per_token(model, 7) / 3)  # a fused attention on a CPU may not be counted


def test_gpt2_costs_what_is_known() -> None:
    """nanoGPT's estimate for GPT-2 at 1024 tokens, 6 N + 12 L C T, with N without the position table."""
    with torch.device("meta"):
        model = build_model(ModelConfig(vocab_size=50257))
    nano = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert flops_per_token(model, 1024) == pytest.approx(nano, rel=1e-3)  # which counts biases and norms too
