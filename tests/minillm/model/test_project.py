"""Queries, keys and values by one product in training, by one each where something stands between: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minillm.model import layers
from minillm.model.config import ModelConfig
from minillm.model.layers import Linear, project
from minillm.model.transformer import build_model

WIDTHS, HEAD = (8, 4, 4), 4


class Products(TorchDispatchMode):
    """Counts, while on, the matrix products."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


class Adapter(nn.Module):
    """Stands in a layer's place and doubles what it returns."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


def make(bias: bool = True) -> tuple[Tensor, list[nn.Module]]:
    """Return x (2, 3, 6) in float64 and layers of float32 weights, so that a cast is due and nothing is rounded."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [Linear(6, width, bias=bias) for width in WIDTHS]
    return torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), layers


def heads(y: Tensor) -> Tensor:
    """Return (..., out) as (..., out / D, D)."""
    return y.unflatten(-1, (-1, HEAD))


def products_of(x: Tensor, layers: list[nn.Module]) -> int:
    with Products() as counter:
        project(x, HEAD, *layers)
    return counter.number


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_numbers_and_gradients_are_those_of_each_layer(bias):
    x, layers = make(bias)
    inputs = [x, *(p for layer in layers for p in layer.parameters())]

    def gradients(ys: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((i + 1) * y.square().sum() for i, y in enumerate(ys)), inputs)  # pyright: ignore

    found, expected = project(x, HEAD, *layers), tuple(heads(layer(x)) for layer in layers)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found), gradients(expected))


def test_one_product_in_training_and_each_layer_for_itself_without_gradients_or_a_cast():
    x, layers = make()
    assert products_of(x, layers) == 1
    with torch.no_grad():
        assert products_of(x, layers) == len(WIDTHS)
    assert products_of(x.float(), layers) == len(WIDTHS)


def test_weights_are_cast_to_the_dtype_of_x():
    _, layers = make()
    assert [y.dtype for y in project(torch.randn(1, 3, 6, dtype=torch.bfloat16), HEAD, *layers)] == [torch.bfloat16] * 3


def test_an_adapter_a_hook_and_a_missing_bias_are_heard():
    x, layers = make()
    plain = project(x, HEAD, *layers)

    adapted = project(x, HEAD, Adapter(layers[0]), *layers[1:])
    torch.testing.assert_close(adapted, (2 * plain[0], *plain[1:]))

    seen: list[Tensor] = []
    handle = layers[1].register_forward_hook(lambda *given: seen.append(given[-1]))
    torch.testing.assert_close(project(x, HEAD, *layers)[1], plain[1])
    assert len(seen) == 1
    handle.remove()

    layers[2] = Linear(6, 4, bias=False)
    torch.testing.assert_close(project(x, HEAD, *layers)[2], heads(layers[2](x)))


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "forward_pre_hook"])
def test_every_kind_of_hook_is_heard(kind):
    x, layers = make()
    heard: list[str] = []
    getattr(layers[0], f"register_{kind}")(lambda *given: heard.append(kind))
    sum(y.sum() for y in project(x, HEAD, *layers)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert heard == [kind]


def test_a_forward_put_in_the_place_of_a_layers_own_is_called():
    x, layers = make()
    layers[0].forward = lambda x: torch.zeros(1, 1, HEAD)
    assert project(x, HEAD, *layers)[0].shape == (1, 1, 1, HEAD)


@pytest.mark.parametrize("settings, products", [({}, 1), ({"position": "rotary"}, 3), ({"qk_norm": True}, 3)])
def test_attention_joins_them_where_nothing_else_reads_what_lies_side_by_side(settings, products, monkeypatch):
    """With rotary positions or a norm of q and k the backward pass keeps other q and k, and these would stay too."""
    config = ModelConfig(**{"vocab_size": 7, "width": 12, "num_heads": 2, "position": "learned", **settings})
    model = build_model(config).train()
    model.compute_in(torch.bfloat16)
    joined: list[int] = []
    monkeypatch.setattr(layers, "project", lambda *given: joined.append(1) or project(*given))
    model(torch.zeros(1, 3, dtype=torch.int64))
    assert len(joined) == (config.num_layers if products == 1 else 0)
