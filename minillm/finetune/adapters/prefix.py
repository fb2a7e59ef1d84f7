r"""Prefix tuning: every layer's queries also see P learned keys and values, which stand before those of the text.

    y_i = attention(q_i, [K_prefix, k_1 .. k_S], [V_prefix, v_1 .. v_S])

Each query sees the whole prefix, whatever causality, windows, padding or documents hide from it. The prefix has no
positions: its keys are not turned (rotary) nor put at a distance (alibi), and the text's positions stay as they were,
so the model's context holds as many tokens as before. It is not part of the cache.

K_prefix and V_prefix (P, Hkv, D) are learnt as they are, or, with an `mlp_width` h, come from a network that all layers
share, which makes training steadier and is not needed after it (`flatten`):

    [K_prefix, V_prefix] of layer l = W_l tanh(U e_p + a) + b_l,     e (P, C),  U (h, C),  W (2 L Hkv D, h)

All are drawn from N(0, 0.02^2), biases from 0. The start is not the model without a prefix: the learned keys take their
share of the softmax, some P / (P + S).

Trainable: 2 L P Hkv D; with the network P C + (C + 1) h + 2 L Hkv D (h + 1).

Source: Li and Liang (2021), arXiv:2101.00190; without a network Liu et al. (2021), arXiv:2110.07602 (P-tuning v2).

Read next: `ia3.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.finetune.adapters.config import PrefixConfig
from minillm.finetune.adapters.places import Part, parts_of
from minillm.model.layers import Embedding, Linear, Pass, Seen
from minillm.model.transformer import Transformer

INIT_STD = 0.02


class PrefixNetwork(nn.Module):
    """The network that makes the prefixes of all layers."""

    def __init__(self, backbone: Transformer, length: int, hidden: int) -> None:
        super().__init__()
        config = backbone.config
        self.rows = Embedding(length, config.width)  # e
        self.inside = Linear(config.width, hidden)  # U, a
        self.outside = Linear(hidden, 2 * config.num_layers * config.kv_heads * config.head_dim)  # W, b
        for layer in (self.inside, self.outside):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.rows.weight, std=INIT_STD)
        self.num_layers = config.num_layers

    def forward(self, layer: int) -> Tensor:
        """Return keys and values of a layer, (P, 2 Hkv D)."""
        hidden = torch.tanh(self.inside(self.rows.weight))  # (P, h)
        weight = self.outside.weight.chunk(self.num_layers)[layer]  # (2 Hkv D, h)
        return F.linear(hidden, weight, self.outside.bias.chunk(self.num_layers)[layer])


class Prefix(Part):
    """Keys and values before those of one layer.

    network: None where keys and values are learnt as they are.
    table: (P, 2 Hkv D), keys then values; None where the network makes them.
    """

    config: PrefixConfig

    def __init__(
        self, config: PrefixConfig, layer: int, kv_heads: int, head_width: int, network: PrefixNetwork | None
    ) -> None:
        super().__init__(config)
        self.layer, self.kv_heads, self.network = layer, kv_heads, network
        size = 2 * kv_heads * head_width
        self.table = nn.Parameter(torch.randn(config.length, size) * INIT_STD) if network is None else None

    def keys_and_values(self) -> Tensor:
        """Return K_prefix and V_prefix, (2, P, Hkv, D) float32."""
        flat = self.table if self.network is None else self.network(self.layer)  # (P, 2 Hkv D)
        assert flat is not None  # without a network there is a table
        return rearrange(flat, "P (two Hkv D) -> two P Hkv D", two=2, Hkv=self.kv_heads)

    def forward(self, inner: Callable[..., Seen], k: Tensor, v: Tensor, now: Pass) -> Seen:
        """Return what is seen, with the prefix in front."""
        seen = inner(k, v, now)
        B, T = k.shape[:2]  # as many queries as there are new keys
        first_k, first_v = (repeat(x.to(k.dtype), "P Hkv D -> B P Hkv D", B=B) for x in self.keys_and_values())
        masks = behind_prefix(seen.masks, first_k.shape[1], T=T, S=seen.k.shape[1], like=k)
        return Seen(torch.cat((first_k, seen.k), dim=1), torch.cat((first_v, seen.v), dim=1), masks)


def behind_prefix(masks: dict[str, Any], length: int, *, T: int, S: int, like: Tensor) -> dict[str, Any]:
    """Return masks that say of the keys behind a prefix what `masks` said of them, and show the prefix to all queries.

    The masks that cannot speak of keys before the first (padding on the left, documents, alibi) become a bias.

    Args:
        masks: arguments of `minillm_kernels.attention`; they may stand behind another prefix already.
        length: P, of this prefix.
        T, S: queries, and keys without this prefix.
        like: (B, ...), on the device of the masks.

    Cost: nothing for causality, windows and padding on the right; else (1 or B) (1 or H) T (P + S) numbers.
    """
    bias = bias_of(masks, T, S, like.device)  # (1 or B, 1 or H, T, S)
    before, stop = masks.get("prefix"), masks["key_stop"]
    prefix = torch.full((like.shape[0],), length, device=like.device)  # (B,)
    return {
        "causal": masks["causal"],
        "window": masks["window"],
        "key_stop": None if stop is None else stop + length,
        "prefix": prefix if before is None else prefix + before,
        "bias": None if bias is None else F.pad(bias, (length, 0)),
    }


def bias_of(masks: dict[str, Any], T: int, S: int, device: torch.device) -> Tensor | None:
    """Return what `bias`, `key_start`, `segments` and `alibi_slopes` add to the scores, float32; None for nothing.

    Returns:
        (1 or B, 1 or H, T, S), -inf where a key is hidden.
    """
    key = torch.arange(S, device=device)  # (S,)
    start, segments, slopes = (masks.get(name) for name in ("key_start", "segments", "alibi_slopes"))
    added = masks.get("bias")
    if start is not None:
        added = plus(added, hiding(key < start[:, None, None, None]))  # (B, 1, 1, S)
    if segments is not None:
        added = plus(added, hiding(segments[:, None, :, None] != segments[:, None, None, :]))  # (B, 1, T, T)
    if slopes is not None:
        distance = key - (torch.arange(T, device=device) + S - T)[:, None]  # (T, S)
        added = plus(added, -slopes[:, None, None] * distance.abs())  # (H, T, S)
    if added is None:
        return None
    added = added if added.ndim == 4 else added[None]
    return added.expand(-1, -1, T, -1)


def plus(added: Tensor | None, more: Tensor) -> Tensor:
    """Return the sum; None counts as nothing."""
    return more if added is None else added + more


def hiding(hidden: Tensor) -> Tensor:
    """Return -inf where a key is hidden and 0 elsewhere, float32."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)


def parts(backbone: Transformer, config: PrefixConfig) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places."""
    model, hidden = backbone.config, config.mlp_width
    network = None if hidden is None else PrefixNetwork(backbone, config.length, hidden)
    return {
        f"blocks.{layer}.attention.source": Prefix(config, layer, model.kv_heads, model.head_dim, network)
        for layer in range(model.num_layers)
    }


@torch.no_grad()
def flatten(model: nn.Module, name: str) -> None:
    """Put the keys and values that an attached adapter's network makes in the place of the network, for good."""
    for part in parts_of(model, name).values():
        if isinstance(part, Prefix) and part.network is not None:
            part.table = nn.Parameter(part.network(part.layer), requires_grad=part.network.rows.weight.requires_grad)
            part.network, part.config = None, dataclasses.replace(part.config, mlp_width=None)
