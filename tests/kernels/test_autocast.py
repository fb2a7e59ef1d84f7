"""torch.autocast does not reach into an op: the dtypes of its tensors decide, on every backend.

PyTorch's own matrix products and scaled dot product attention are rounded by it, which a backend, or the oracle, is
made of.
"""

from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, C, V = 12, 16, 21
TOKENS = torch.arange(N, device=DEVICE) % 5
HEADS = {name: (2, N, 2, C) for name in "qkv"}
ANGLES = torch.arange(N * C // 2, dtype=torch.float32, device=DEVICE).view(N, -1)
OPS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "rms_norm": (lambda x, w: mk.rms_norm(x, w, eps=1e-5), {"x": (N, C), "w": (C,)}),
    "layer_norm": (lambda x, w, b: mk.layer_norm(x, w, b, eps=1e-5), {"x": (N, C), "w": (C,), "b": (C,)}),
    "gelu": (mk.gelu, {"x": (N, C), "bias": (C,)}),
    "swiglu": (mk.swiglu, {"gate": (N, C), "up": (N, C)}),
    "rotary": (lambda q, k: mk.rotary(q, k, ANGLES.cos(), ANGLES.sin()), {"q": HEADS["q"], "k": HEADS["k"]}),
    "embedding": (lambda weight: mk.embedding(TOKENS, weight), {"weight": (V, C)}),
    "attention": (lambda **t: mk.attention(**t, causal=True), HEADS),
    "attention with a cap": (lambda **t: mk.attention(**t, softcap=3.0), HEADS),
    "cross_entropy": (lambda logits: mk.cross_entropy(logits, TOKENS), {"logits": (N, V)}),
    "linear_cross_entropy": (
        lambda hidden, weight: mk.linear_cross_entropy(hidden, weight, TOKENS),
        {"hidden": (N, C), "weight": (V, C)},
    ),
}


def outputs_and_gradients(
    call: Callable[..., Any], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, autocast: bool
) -> list[Tensor]:
    """Return what an op gives for numbers that are the same every time, both passes within autocast or without."""
    torch.manual_seed(0)
    leaves = {key: torch.randn(shape).to(DEVICE, dtype).requires_grad_() for key, shape in shapes.items()}
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        result = call(**leaves)
        outputs = result if isinstance(result, tuple) else (result,)
        upstream = [torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(y.dtype) for y in outputs]
        return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), upstream)]


def assert_the_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for tensor, other in zip(ours, expected, strict=True):
        assert tensor.dtype == other.dtype and torch.equal(tensor, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["torch", "reference", "fused"])
@pytest.mark.parametrize("op", OPS)
def test_bits_are_those_without_autocast(op, name, dtype):
    call, shapes = OPS[op]
    with mk.backend(name):
        assert_the_same(*(outputs_and_gradients(call, shapes, dtype, autocast) for autocast in (False, True)))


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("op", ["attention", "attention with a cap", "linear_cross_entropy"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_nor_does_it_under_the_compiler(op, name):
    call, shapes = OPS[op]
    with mk.backend(name):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_the_same(*(outputs_and_gradients(f, shapes, torch.float32, f is compiled) for f in (call, compiled)))


def test_weights_to_look_at_are_those_without_autocast():
    q, k = torch.randn(2, *HEADS["q"], device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        within = mk.attention_weights(q, k)
    assert torch.equal(within, mk.attention_weights(q, k))
