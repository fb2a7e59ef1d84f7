"""Bias and non-linearity in one op where both are plain, apart where something stands between: the same either way."""

from __future__ import annotations

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from torch import Tensor, nn

from minillm.model import layers
from minillm.model.config import ModelConfig
from minillm.model.heads import HeadTransform
from minillm.model.layers import FeedForward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = ["relu", "gelu", "gelu_tanh", "relu2"]


class Adapter(nn.Module):
    """Owns the layer in whose place it stands, as adapters do; adds nothing."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


@pytest.fixture
def biases(monkeypatch) -> list[Tensor | None]:
    """Return the list into which each non-linearity writes the bias that it was given."""
    given: list[Tensor | None] = []
    activate = layers.activate

    def spy(name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
        given.append(bias)
        return activate(name, x, bias)

    monkeypatch.setattr(layers, "activate", spy)
    return given


def make(activation: Any, *, bias: bool = True) -> FeedForward:
    torch.manual_seed(0)
    mlp = FeedForward(ModelConfig(vocab_size=7, width=12, num_heads=2, activation=activation, bias=bias))
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mlp.to(DEVICE)


def run(mlp: nn.Module) -> list[Tensor]:
    """Return output, gradient of the input and gradients of the weights."""
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)).to(DEVICE).requires_grad_()
    y = mlp(x)
    weights = list(mlp.parameters())
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *weights])]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_adapter_takes_the_other_path_to_the_same_numbers(activation, biases):
    mlp = make(activation)
    with mk.backend("fused"):
        plain = run(mlp)
        mlp.up = Adapter(mlp.up)  # pyright: ignore[reportAttributeAccessIssue]
        adapted = run(mlp)
    torch.testing.assert_close(adapted, plain, rtol=1e-4, atol=1e-4)
    assert biases[0] is not None and biases[1] is None


@pytest.mark.parametrize("name", ["torch", "reference", "fused"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_backend_gives_the_same(activation, name):
    with mk.backend("torch"):
        expected = run(make(activation))
    with mk.backend(name):
        torch.testing.assert_close(run(make(activation)), expected, rtol=1e-4, atol=1e-4)  # sums of 15 numbers near 10


def test_hook_sees_the_output_of_its_layer(biases):
    mlp = make("gelu")
    seen: list[Tensor] = []
    mlp.up.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with mk.backend("fused"):
        run(mlp)
    assert len(seen) == 1 and biases == [None]


@pytest.mark.parametrize("name, bias, fused", [("torch", True, False), ("fused", True, True), ("fused", False, False)])
def test_one_op_where_there_is_a_kernel_and_a_bias(biases, name, bias, fused):
    with mk.backend(name):
        run(make("gelu", bias=bias))
    assert [given is not None for given in biases] == [fused]


def test_head_of_a_masked_language_model_does_so_too(biases):
    config = ModelConfig(vocab_size=7, width=12, num_heads=2, kind="encoder", head="transform")
    head = HeadTransform(config)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    head.to(DEVICE)
    found = []
    for name in ("torch", "fused"):
        with mk.backend(name):
            found.append(run(head))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert [given is not None for given in biases] == [False, True]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_decision_does_not_break_the_graph():
    pytest.importorskip("triton", reason="there is no Triton for this system")
    mlp = make("gelu")
    x = torch.randn(2, 3, 12, device=DEVICE)
    with mk.backend("fused"):
        compiled = torch.compile(mlp, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), mlp(x))
    torch._dynamo.reset()
