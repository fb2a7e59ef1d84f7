"""One configuration of every kind of adapter, inputs, and a way to move what learns."""

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
NETWORKS = ("houlsby", "pfeiffer", "prefix", "prefix-network")  # do what no weight can


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS)
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    """A configuration of each kind, and of each option that changes what is computed."""
    return request.param


@pytest.fixture(
    params=[c for n, c in ADAPTERS.items() if n not in NETWORKS], ids=[n for n in ADAPTERS if n not in NETWORKS]
)
def mergeable(request: pytest.FixtureRequest) -> AdapterConfig:
    """A configuration of each kind that the model's weights can take in."""
    return request.param


@pytest.fixture(params=(*NETWORKS, "lora-table"))
def unmergeable(request: pytest.FixtureRequest) -> AdapterConfig:
    """A configuration of each kind that they cannot, a table that is tied to the output among them."""
    return ADAPTERS[request.param]


@pytest.fixture(params=["lora", "dora", "adalora", "houlsby", "prefix", "prefix-network", "ia3", "bitfit"])
def one_of_each(request: pytest.FixtureRequest) -> AdapterConfig:
    """A configuration for each class of parts."""
    return ADAPTERS[request.param]


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
