r"""Bottleneck adapters: after a sub-layer, a narrow network that begins as nearly the identity.

    y = u + W_2 f(W_1 u + c_1) + c_2,     u = sublayer(x),     W_1 (m, C),  W_2 (C, m)

Houlsby: after attention and after the feed-forward part of each block, f = GELU; the gains and biases of all norms over
the residual stream train too, as copies of this adapter's own. Pfeiffer: after the feed-forward part alone, f = ReLU,
and the norms stay. Either stands after the sub-layer's output projection and before the addition to the stream;
dropout, which here is part of that addition, comes after it.

W_1 and W_2 are drawn from N(0, 0.001^2), cut at two standard deviations, and c_1 = c_2 = 0. As |f(z)| <= |z|, at the
start no element of y is further from u than

    4e-6 m (|u_1| + ... + |u_C|)

Trainable: 2 m C + m + C for each bottleneck; for Houlsby the norms besides, 2 C for each layer norm.

Neither merges into the weights: the network is not linear.

Source: Houlsby et al. (2019), arXiv:1902.00751, and the authors' code, which drops out before the adapter; Pfeiffer et
al. (2020), arXiv:2005.00247, whose code draws wider weights, N(0, 0.02^2).

Read next: `prefix.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from minillm.finetune.adapters.config import HoulsbyConfig, PfeifferConfig
from minillm.finetune.adapters.places import Part, modules_of
from minillm.model.layers import Linear, Norm, activate_after
from minillm.model.transformer import Transformer

INIT_STD = 1e-3


class Bottleneck(Part):
    """The network after one sub-layer."""

    def __init__(self, width: int, config: HoulsbyConfig | PfeifferConfig) -> None:
        super().__init__(config)
        self.activation = "gelu" if isinstance(config, HoulsbyConfig) else "relu"
        self.down = Linear(width, config.width)
        self.up = Linear(config.width, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, inner: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return (B, T, C), the sub-layer's output and what is added to it."""
        u = inner(*inputs)
        return u + self.up(activate_after(self.down, self.activation, u))


class OwnNorm(Part):
    """Gain and bias of a norm, in place of the model's own."""

    alone = True

    def __init__(self, base: Norm, config: HoulsbyConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(base.weight.detach().clone())
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach().clone())

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the adapter's gain and bias (C,), whatever the model's are."""
        return self.weight.to(weight.dtype), None if self.bias is None else self.bias.to(weight.dtype)


def parts(backbone: Transformer, config: HoulsbyConfig | PfeifferConfig) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places."""
    after = ("attention", "mlp") if isinstance(config, HoulsbyConfig) else ("mlp",)
    made: dict[str, Part] = {
        f"blocks.{layer}.{sublayer}": Bottleneck(backbone.config.width, config)
        for layer in range(len(backbone.blocks))
        for sublayer in after
    }
    if isinstance(config, HoulsbyConfig):
        made |= {path: OwnNorm(norm, config) for path, norm in stream_norms(backbone).items()}
    return made


def stream_norms(backbone: Transformer) -> dict[str, Norm]:
    """Return the norms over the residual stream by their paths: those of embeddings and blocks, and the final one."""
    places = ("embeddings.norm", "attention_norm", "mlp_norm", "final_norm")
    return {p: module for p, module in modules_of(backbone) if isinstance(module, Norm) and p.endswith(places)}
