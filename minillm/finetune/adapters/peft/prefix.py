r"""Prefixes in PEFT's format, where the text's positions are counted from behind the prefix.

PEFT puts keys and values into transformers' cache, P of them, so the first token of the text has position P; here it
has 0. Learned positions would move with it, so such models are refused. Rotary ones turn queries and the text's keys
alike, but not the prefix's keys, which are there as they are: so these are turned by P positions on the way out, and
back on the way in:

    (R^(t+P) q) . k' = (R^t q) . k      for  k' = R^P k,  as R^P is orthogonal

prompt_embeddings (P, 2 L Hkv D): for each layer keys, then values.

Read next: `../prefix.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from minillm.checkpoint.hf.family import Family
from minillm.errors import InputError
from minillm.finetune.adapters.config import PrefixConfig
from minillm.finetune.adapters.prefix import Prefix
from minillm.model.config import ModelConfig
from minillm.model.layers import rotary_tables
from minillm.model.transformer import Transformer

KEY = "prompt_embeddings"


def check_positions(model: ModelConfig, family: Family) -> None:
    """Raise InputError where a prefix does something else there than here."""
    if model.kind != "decoder":
        raise InputError(f"PEFT puts a prefix into a decoder's cache, and {family.title} has none")
    if model.position != "rotary":
        raise InputError(
            f"PEFT's prefix takes positions from the text, and {family.title} has learned ones: the model would read "
            "the text at other places than it learned them"
        )
    if model.window is not None:
        raise InputError("PEFT's prefix falls out of a sliding window, and here it does not; set model.window to none")


@torch.no_grad()
def to_prompt(
    backbone: Transformer, config: PrefixConfig, parts: Mapping[str, Prefix], family: Family
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return PEFT's settings and tensor of a prefix; what a network made is written as it stands."""
    model = backbone.config
    check_positions(model, family)
    layers = []
    for layer in range(model.num_layers):
        keys, values = parts[f"blocks.{layer}.attention.source"].keys_and_values()  # (P, Hkv, D)
        layers += [turned(keys, model, config.length), values]
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": config.length,
        "num_layers": model.num_layers,
        "num_attention_heads": model.kv_heads,
        "num_transformer_submodules": 1,
        "token_dim": model.kv_heads * model.head_dim,
        "encoder_hidden_size": model.kv_heads * model.head_dim,
        "prefix_projection": False,
    }, {KEY: rearrange(torch.stack(layers), "layers P Hkv D -> P (layers Hkv D)")}


def from_prompt(prompt: Tensor, model: ModelConfig, family: Family, source: object) -> dict[str, Tensor]:
    """Return our tensors of a prefix, by their names in an adapter.

    Raises:
        InputError: a prefix that does something else there than here, or one of another shape or without keys.
    """
    check_positions(model, family)
    wanted = 2 * model.num_layers * model.kv_heads * model.head_dim
    if prompt.ndim != 2 or prompt.shape[1] != wanted or len(prompt) == 0:
        came = tuple(prompt.shape)
        raise InputError(f"{source}: the model asks for {KEY} (P, {wanted}), P at least 1, the file has {came}")
    layers = rearrange(
        prompt.float(), "P (L two Hkv D) -> L two P Hkv D", two=2, L=model.num_layers, Hkv=model.kv_heads
    )
    found = {}
    for layer, (keys, values) in enumerate(layers):
        both = torch.stack([turned(keys, model, -len(prompt)), values])
        found[f"blocks.{layer}.attention.source.adapter.table"] = rearrange(both, "two P Hkv D -> P (two Hkv D)")
    return found


def turned(keys: Tensor, model: ModelConfig, positions: int) -> Tensor:
    """Return keys (P, Hkv, D) turned by a number of positions, forwards or backwards."""
    cos, sin = (table[-1] for table in rotary_tables(abs(positions) + 1, model.head_dim, model.rotary_theta))  # (D/2,)
    if positions < 0:
        sin = -sin
    first, second = keys.chunk(2, dim=-1)  # (P, Hkv, D/2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
