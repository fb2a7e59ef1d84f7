"""Dropout inside an adapter, from the seed of the model's own pass: equal seeds drop equal elements, on every backend.

A linear layer is not told of the pass that it is in. So the Transformer, when it is called, leaves the pass's seed
where the adapters' dropout finds it.

Read next: `lora.py`.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from minillm_kernels import dropout
from torch import Tensor, nn

from minillm.model.layers import Pass
from minillm.model.transformer import Transformer


class PassSeed:
    """The seed of the pass that a Transformer is in: () int64 on its device; None: it is not in training mode."""

    def __init__(self, backbone: Transformer) -> None:
        self.value: Tensor | None = None
        self.hook = backbone.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Take the seed of the pass that is about to begin, or draw one as the Transformer does."""
        self.value = None
        if model.training:
            seed, device = named.get("seed"), inputs[0].device
            drawn = torch.randint(2**62, (), device=device) if seed is None else seed
            self.value = torch.as_tensor(drawn, dtype=torch.int64, device=device)


def pass_seed(backbone: Transformer) -> PassSeed:
    """Return where the seed of the Transformer's passes is left; the first call arranges for it."""
    return next(iter(_seeds(backbone)), None) or PassSeed(backbone)


def forget_pass_seed(backbone: Transformer) -> None:
    """Leave the Transformer's seeds alone again, where no dropout of an adapter needs them."""
    if not any(isinstance(module, AdapterDropout) for module in backbone.modules()):
        for seed in _seeds(backbone):
            seed.hook.remove()


def _seeds(backbone: Transformer) -> list[PassSeed]:
    """Return the PassSeed that listens to a Transformer, if there is one."""
    owners = (getattr(hook, "__self__", None) for hook in backbone._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, PassSeed)]


class AdapterDropout(nn.Module):
    """y = dropout(x) in training mode.

    p: probability of dropping an element.
    seed: of the pass.
    site: the name of this place and adapter; every one has a pattern of its own.
    """

    def __init__(self, p: float, seed: PassSeed, site: str) -> None:
        super().__init__()
        self.p, self.seed = p, seed
        self.site = 2**32 + zlib.crc32(site.encode())  # past the numbers of the model's own places

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) for x (..., C)."""
        if not self.training:
            return x
        p, seed = Pass(seed=self.seed.value).dropout(self.p, self.site)
        return x if seed is None else dropout(x, p, seed)
