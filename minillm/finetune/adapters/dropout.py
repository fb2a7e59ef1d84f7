"""Dropout inside an adapter, from the seed of the model's own pass: equal seeds drop equal elements, on every backend.

A linear layer is not told of the pass that it is in, but a block is. So each block, before it computes, leaves the
pass's seed where the adapters' dropout finds it: also when the backward pass has it compute anew, by when another pass
may have begun (R-Drop makes two before one backward pass).

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
        self.hooks = [backbone.register_forward_pre_hook(self.begin, with_kwargs=True)]
        self.hooks += [block.register_forward_pre_hook(self.go_on) for block in backbone.blocks]

    def begin(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Take the seed of the pass that is about to begin; where the Transformer is given none, draw one for both."""
        self.value = None
        if not model.training:
            return None
        seed, device = named.get("seed"), (inputs[0] if inputs else named["tokens"]).device
        drawn = torch.randint(2**62, (), device=device) if seed is None else seed
        self.value = torch.as_tensor(drawn, dtype=torch.int64, device=device)
        return inputs, named | {"seed": self.value}

    def go_on(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Take the seed of the pass that a block is in. A compiled graph holds the seed of its own pass by itself."""
        *_, now = inputs
        if not torch.compiler.is_compiling():
            self.value = now.seed


def pass_seed(backbone: Transformer) -> PassSeed:
    """Return where the seed of the Transformer's passes is left; the first call arranges for it."""
    return next(iter(_seeds(backbone)), None) or PassSeed(backbone)


def forget_pass_seed(backbone: Transformer) -> None:
    """Leave the Transformer's seeds alone again, where no dropout of an adapter needs them."""
    if not any(isinstance(module, AdapterDropout) for module in backbone.modules()):
        for seed in _seeds(backbone):
            for hook in seed.hooks:
                hook.remove()


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
