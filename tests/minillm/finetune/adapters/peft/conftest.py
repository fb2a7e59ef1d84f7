"""Tiny models of every family: ours, and transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from minillm.checkpoint.hf.entries import write_entries
from minillm.checkpoint.hf.families import FAMILIES
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model

SMALL: dict[str, Any] = {"vocab_size": 23, "context": 32, "num_layers": 2, "width": 16, "num_heads": 4, "mlp_width": 24}
POST_NORM: dict[str, Any] = {
    "kind": "encoder", "norm_position": "post", "norm_eps": 1e-12, "activation": "gelu", "embedding_norm": True,
    "head": "transform", "head_bias": True,
}  # fmt: skip
DECODER: dict[str, Any] = {"norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False}
MODELS: dict[str, dict[str, Any]] = {
    "bert": POST_NORM | {"token_types": 2},
    "roberta": POST_NORM | {"token_types": 1},
    "distilbert": POST_NORM,
    "modernbert": POST_NORM
    | {"norm_position": "pre", "norm_eps": 1e-5, "position": "rotary", "activation": "geglu", "bias": False}
    | {"window": 4, "global_every": 2, "rotary_theta_local": 500.0},
    "gpt2": {},
    "llama": DECODER | {"num_kv_heads": 2},
    "mistral": DECODER | {"num_kv_heads": 2, "window": 4, "global_every": 0},
    "qwen3": DECODER | {"num_kv_heads": 2, "qk_norm": True, "head_width": 8},
}


class Pair:
    """One model twice. family, purpose: which class theirs is of."""

    def __init__(self, name: str) -> None:
        self.family = FAMILIES[name]
        self.config = ModelConfig(**SMALL | MODELS[name])
        self.purpose: Any = "causal_lm" if self.config.kind == "decoder" else "masked_lm"
        torch.manual_seed(7)
        self.ours: Any = build_model(self.config).eval()
        with torch.no_grad():  # large enough that every part of the model shows in the logits
            for parameter in self.ours.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        self.theirs = self.build(self.purpose, self.ours, self.config)

    def build(self, purpose: Any, model: nn.Module, config: ModelConfig, **settings: Any) -> Any:
        """Return transformers' model with the weights of one of ours."""
        names = {"causal_lm": AutoModelForCausalLM, "masked_lm": AutoModelForMaskedLM}
        kind = names.get(purpose, AutoModelForSequenceClassification)
        written = {
            **self.family.write(config),
            "pad_token_id": 1,
            "bos_token_id": None,
            "eos_token_id": None,
            **settings,
        }
        made = kind.from_config(AutoConfig.for_model(self.family.model_type, **written))
        entries = self.family.entries(config, purpose, prefix=self.family.prefix_for(purpose))
        missing = made.load_state_dict(write_entries(entries, dict(model.named_parameters()), {}), strict=False)
        assert not missing.unexpected_keys
        made.tie_weights()
        return made.eval()

    def logits(self, model: Any = None) -> torch.Tensor:
        """Return the logits of some tokens by one of the two."""
        tokens = torch.arange(2, 22).reshape(2, 10)  # 1 is padding
        with torch.no_grad():
            return self.ours.logits(tokens) if model is None else model(input_ids=tokens).logits


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each family in turn."""
    return Pair(request.param)


@pytest.fixture
def pairs() -> type[Pair]:
    """A family by its name."""
    return Pair


@pytest.fixture
def same() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return the comparison of logits: within 1e-5 of the largest one."""

    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())

    return compare
