"""A configuration that cannot be built says so in one line, with what came and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from minillm.config import build
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model

MISTAKES = [
    pytest.param(
        {"num_heads": 6, "width": 256}, "model.num_heads (6) must divide model.width (256); try 4", id="heads"
    ),
    pytest.param({"num_kv_heads": 5}, "model.num_kv_heads (5) must divide model.num_heads (12); try 1", id="key-heads"),
    pytest.param({"num_layers": 0}, "model.num_layers must be at least 1, got 0", id="layers"),
    pytest.param({"context": 0}, "model.context must be at least 1, got 0", id="context"),
    pytest.param({"context": 2**62}, f"model.context must be below 2**31, got {2**62}", id="endless-context"),
    pytest.param({"width": 2**40, "num_heads": 3}, f"model.width must be below 2**31, got {2**40}", id="endless-width"),
    pytest.param({"head_width": 2**62}, f"model.head_width must be below 2**31, got {2**62}", id="endless-head"),
    pytest.param({"width": 2**31 - 1, "num_heads": 9}, "must divide model.width (2147483647); try 1", id="prime-width"),
    pytest.param(
        {"window": 8},
        "model.window is the window of no layer, as all see everything with model.global_every = 1; "
        "set that to 0, or to n for one layer in n that does",
        id="window-of-no-layer",
    ),
    pytest.param({"window": 0}, "model.window must be at least 1, got 0; leave it out for the default", id="window"),
    pytest.param(
        {"position": "rotary", "head_width": 5},
        "rotary positions need an even head width, got 5; change model.num_heads",
        id="rotary-width",
    ),
    pytest.param(
        {"position": "sinusoidal", "width": 9, "num_heads": 3},
        "sinusoidal positions need an even model.width, got 9",
        id="sinusoidal-width",
    ),
    pytest.param({"dropout": 1.0}, "model.dropout must be in [0, 1), got 1.0", id="dropout"),
    pytest.param({"attention_dropout": -0.1}, "model.attention_dropout must be in [0, 1), got -0.1", id="negative"),
    pytest.param({"norm_eps": 0.0}, "model.norm_eps must be above 0 and finite, got 0.0", id="eps"),
    pytest.param({"logit_softcap": float("nan")}, "model.logit_softcap must be above 0 and finite, got nan", id="nan"),
    pytest.param({"init_std": -1.0}, "model.init_std must be 0 or above and finite, got -1.0", id="init"),
    pytest.param({"head": "none", "head_bias": True}, "model.head_bias needs a head; set model.head", id="no-head"),
]


@pytest.mark.parametrize("choices, text", MISTAKES)
def test_a_mistake_is_one_line(choices: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        build(ModelConfig, choices, prefix="model.")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_vocabulary_nothing_is_built() -> None:
    with pytest.raises(ValueError, match="model.vocab_size is 0"):
        build_model(ModelConfig())


@pytest.mark.parametrize(
    "choices, hidden",
    [
        pytest.param({"width": 768}, 3072, id="gpt2"),
        pytest.param({"width": 768, "activation": "swiglu"}, 2048, id="gated: 8/3 of 768"),
        pytest.param({"width": 96, "activation": "geglu"}, 256, id="gated: 256 is 8/3 of 96"),
        pytest.param({"width": 108, "activation": "geglu"}, 320, id="gated: 288 up to 320"),
        pytest.param({"width": 96, "activation": "geglu", "mlp_width": 10}, 10, id="as said"),
    ],
)
def test_hidden_size(choices: dict[str, Any], hidden: int) -> None:
    assert ModelConfig(**choices).hidden == hidden


@pytest.mark.parametrize(
    "window, every, expected",
    [
        pytest.param(None, 3, [None] * 7, id="none"),
        pytest.param(8, 7, [None, *[8] * 6], id="the-first-global"),
        pytest.param(8, 3, [None, 8, 8, None, 8, 8, None], id="modernbert"),
        pytest.param(8, 0, [8] * 7, id="no-global"),
    ],
)
def test_window_of_each_layer(window: int | None, every: int, expected: list[int | None]) -> None:
    config = ModelConfig(window=window, global_every=every)
    assert [config.window_of(layer) for layer in range(7)] == expected
