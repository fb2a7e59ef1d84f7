r"""Attention maps: what each token of a text looks at, in chosen layers and heads of a model.

    P_ij = softmax over j of (scale * q_i . k_j and what the mask says),    y_i = sum_j P_ij v_j

The fused kernels never hold P. It is computed anew from what the layer's attention was given in the same pass, so it is
the P of that pass with everything that shaped it: adapters in the projections, learned prefixes among the keys,
windows, padding, documents, softcap. Dropout is off.

A map says where a head reads, not what it makes of it: a value may be small where its weight is large, and later layers
may ignore it (Jain and Wallace, 2019, arXiv:1902.10186). `explain.py` asks what moves the answer.

Read next: `attention_shown.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.evaluate import inference
from minillm.finetune.adapters.places import backbone_of
from minillm.finetune.predict import Finetuned
from minillm.loading import Loaded
from minillm.model.layers import Attention
from minillm.reading import Reading, only_model, reading_of


@dataclass(frozen=True, kw_only=True)
class Attended:
    """A text and what its tokens look at.

    maps: layer -> (H', T, S) float32, each row a distribution over keys; keys before the last T are a learned prefix.
    heads: (H',) the number of each head.
    """

    reading: Reading
    maps: dict[int, NDArray]
    heads: tuple[int, ...]


def attention_of(
    loaded: Loaded | Finetuned,
    text: str,
    pair: str | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Attended:
    """Return what the tokens of a text look at in the model of a run, pretrained or fine-tuned.

    Args:
        pair: the second text, where the task is on pairs.
        layers, heads: which, counted from 0; None: all.
    Raises:
        InputError: a layer or head that the model does not have, or a text that it cannot read; see `reading_of`.
    """
    model, reading = only_model(loaded), reading_of(loaded, text, pair)
    chosen = _chosen("heads", heads, backbone_of(model).config.num_heads)
    maps = attention_maps(model, reading.tokens, layers=layers, heads=chosen, **reading.inputs)
    return Attended(
        reading=reading, maps={layer: P[0].float().cpu().numpy() for layer, P in maps.items()}, heads=chosen
    )


def attention_maps(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    **inputs: Any,
) -> dict[int, Tensor]:
    """Return the attention weights of chosen layers and heads.

    Args:
        model: a Transformer, or a model with one as its `backbone`; with or without adapters. Its mode stays as it is.
        tokens: (B, T) int64.
        layers, heads: which, counted from 0; None: all.
        inputs: of the model beside the tokens, such as `lengths` of padded rows; see `Transformer.forward`.
    Returns:
        layer -> (B, H', T, S) in the model's compute dtype, layers and heads in the order in which they were asked for.
        S is T, or with a learned prefix of P keys P + T. A row sums to 1; those of padding mean nothing.
    Raises:
        InputError: a layer or head that the model does not have.
        ValueError: `model` has no Transformer, or is compiled: its old code does not see that somebody looks.

    Cost: a forward pass; B * H * T * S numbers while a chosen layer runs, and B * H' * T * S kept of each.
    """
    config = backbone_of(model).config
    wanted, columns = _chosen("layers", layers, config.num_layers), list(_chosen("heads", heads, config.num_heads))
    maps: dict[int, Tensor] = {}
    with inference(model), ExitStack() as looks:
        for attention in _attentions(model, wanted):
            looks.enter_context(_looking(attention, columns, maps))
        model(tokens, **inputs)
    if missing := [layer for layer in wanted if layer not in maps]:
        raise ValueError(f"attention of layer {missing[0]} was not met: pass a model that is not compiled")
    return {layer: maps[layer] for layer in wanted}


def _attentions(model: nn.Module, layers: Sequence[int]) -> list[Attention]:
    """Return the attention of layers, whatever adapters stand around it."""
    return [m for m in backbone_of(model).modules() if isinstance(m, Attention) and m.layer in layers]


@contextmanager
def _looking(attention: Attention, heads: list[int], maps: dict[int, Tensor]) -> Iterator[None]:
    """Put into `maps` the weights that a layer's attention uses in the passes inside the block."""

    def look(_: nn.Module, given: Any) -> None:
        maps[attention.layer] = attention.weights(*given)[:, heads]  # (B, H', T, S)

    handle = attention.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _chosen(what: str, numbers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return which of `count` are meant, each once; None: all.

    Raises:
        InputError: one that is not there, or none at all.
    """
    chosen = tuple(range(count)) if numbers is None else tuple(dict.fromkeys(numbers))
    strange = [number for number in chosen if not 0 <= number < count]
    if strange or not chosen:
        got = strange[0] if strange else "none"
        raise InputError(f"{what} are counted from 0 to {count - 1} in this model, got {got}; choose among them")
    return chosen
