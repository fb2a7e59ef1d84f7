"""A stand-in for a fine-tuned model, in every shape that adapters meet, and one configuration of every kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm.finetune.adapters.config import (
    AdaLoRAConfig,
    AdapterConfig,
    BitFitConfig,
    HoulsbyConfig,
    IA3Config,
    LoRAConfig,
    PfeifferConfig,
    PrefixConfig,
)
from minillm.model.config import ModelConfig
from minillm.model.layers import Linear
from minillm.model.transformer import build_model

MODELS: dict[str, dict[str, Any]] = {
    "encoder-pre": {"kind": "encoder", "norm_position": "pre", "embedding_norm": True},
    "encoder-post": {"kind": "encoder", "norm_position": "post", "embedding_norm": True, "pooler": True},
    "decoder-pre": {"kind": "decoder", "norm_position": "pre"},
    "decoder-post": {"kind": "decoder", "norm_position": "post"},
    "llama": {"kind": "decoder", "position": "rotary", "activation": "swiglu", "num_kv_heads": 2, "qk_norm": True},
}

ADAPTERS = {
    "lora": LoRAConfig(rank=3),
    "rslora-all": LoRAConfig(rank=3, targets=("all",), rank_stabilised=True),
    "lora-table": LoRAConfig(rank=3, targets=("embeddings.tokens", "q")),
    "dora": LoRAConfig(rank=3, dora=True, targets=("q", "down")),
    "adalora": AdaLoRAConfig(rank=3, target_rank=2),
    "houlsby": HoulsbyConfig(width=3),
    "pfeiffer": PfeifferConfig(width=3),
    "prefix": PrefixConfig(length=3),
    "prefix-network": PrefixConfig(length=3, mlp_width=7),
    "ia3": IA3Config(),
    "bitfit": BitFitConfig(),
}
SHAPE: dict[str, Any] = {"vocab_size": 19, "context": 12, "num_layers": 2, "width": 16, "num_heads": 4}


class StandIn(nn.Module):
    """What fine-tuning makes of a pretrained model: the model, and a head beside it."""

    def __init__(self, config: ModelConfig, classes: int = 3) -> None:
        super().__init__()
        self.backbone = build_model(config)
        self.head = Linear(config.width, classes)

    @property
    def config(self) -> ModelConfig:
        return self.backbone.config

    def compute_in(self, dtype: torch.dtype) -> None:
        self.backbone.compute_in(dtype)

    def forward(self, tokens: Tensor, **inputs: Any) -> Tensor:
        hidden = self.backbone(tokens, **inputs)  # (B, T, C)
        pooler = self.backbone.pooler
        return self.head(hidden.mean(dim=1) if pooler is None else pooler(hidden[:, 0]))


@pytest.fixture
def stand_in() -> Callable[..., StandIn]:
    """Return a function: a name in MODELS, settings -> a model in evaluation mode, no weight of it 0 or 1."""

    def make(kind: str = "encoder-post", **settings: Any) -> StandIn:
        torch.manual_seed(0)
        model = StandIn(ModelConfig(**(SHAPE | MODELS[kind] | settings))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each name in MODELS."""
    return request.param


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS)
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    """A configuration of each kind, and of each option that changes what is computed."""
    return request.param


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def batch() -> dict[str, Any]:
    """Inputs of a model: rows padded on the right."""
    return {"tokens": some_tokens(3, 7), "lengths": torch.tensor([7, 4, 1])}


@pytest.fixture(params=["ragged", "one"])
def any_batch(request: pytest.FixtureRequest, batch: dict[str, Any]) -> dict[str, Any]:
    """The same, and a single token."""
    return batch if request.param == "ragged" else {"tokens": some_tokens(1, 1)}


@pytest.fixture
def stir() -> Callable[[nn.Module], None]:
    """Return a function that moves everything that learns by some random amount, as training would."""

    def move(model: nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))

    return move
