"""Tensors that lie so far apart that their strides fit into 32 bits, and the places of their elements do not.

Triton hands a kernel such a stride in 32 bits, as it does an index: their product wraps unless the kernel widens one of
them first, and reads where no memory is: the process ends there. What lies between the elements is memory that is
mapped and never touched.
"""

from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("memory_is_given_back")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BYTES = 2 * 2**31 + 2**20  # a float16 at element 2**31, and room for others beside it


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).half().to(DEVICE)


TOKENS, WEIGHT = torch.tensor([2, 0, 2], device=DEVICE), normal(8)
ANGLE = torch.outer(torch.arange(3), torch.tensor([1.0, 0.3])).to(DEVICE)


def norm(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, residual: op(x, WEIGHT, residual=residual, dropout_p=0.3, seed=7)


def turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return mk.rotary(q, k, ANGLE.cos(), ANGLE.sin())


def losses(logits: Tensor) -> Tensor:
    return mk.cross_entropy(logits, TOKENS, reduction="none")


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return mk.attention(q, k, v, bias=bias, causal=True)


# The op, its tensors' shape, how many of them there are, and the axis along which they lie apart.
CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...], int, int]] = {
    "rms_norm": (norm(mk.rms_norm), (3, 8), 2, 0),
    "layer_norm": (norm(mk.layer_norm), (3, 8), 2, 0),
    "gelu": (lambda x: mk.gelu(x, WEIGHT), (3, 8), 1, 0),
    "swiglu": (mk.swiglu, (3, 8), 2, 0),
    "rotary of rows": (turned, (3, 1, 1, 4), 2, 0),
    "rotary of tokens": (turned, (1, 3, 1, 4), 2, 1),
    "rotary of heads": (turned, (1, 1, 3, 4), 2, 2),
    "embedding": (lambda weight: mk.embedding(TOKENS, weight), (3, 8), 1, 0),
    "cross_entropy of short rows": (losses, (3, 8), 1, 0),
    "cross_entropy of long rows": (losses, (3, 1040), 1, 0),
    "cross_entropy of classes": (losses, (3, 3), 1, 1),
    "attention of rows": (attended, (3, 2, 1, 16), 3, 0),
    "attention of tokens of a tile": (attended, (1, 3, 1, 16), 3, 1),
    "attention of tiles": (attended, (1, 65, 1, 16), 3, 1),
    "attention of heads": (attended, (1, 2, 3, 16), 3, 2),
    "attention of columns": (attended, (1, 2, 1, 3), 3, 3),
}


def apart(tensors: list[Tensor], axis: int) -> list[Tensor]:
    """Return the same numbers, the last index of `axis` 2**31 elements after the first or a few more."""
    storage = torch.empty(BYTES // 2, dtype=torch.float16, device=DEVICE)
    found = []
    for place, x in enumerate(tensors):
        strides = list(x.movedim(axis, 0).contiguous().movedim(0, axis).stride())
        strides[axis] = -(-(2**31) // (x.shape[axis] - 1))
        found.append(storage.as_strided(x.shape, strides, place * 2**16).copy_(x))
    return found


def run(call: Callable[..., Any], tensors: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    with mk.backend("fused"):
        outputs = call(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


@pytest.mark.parametrize("call, shape, number, axis", CASES.values(), ids=CASES)
def test_tensors_are_read_where_they_lie(call, shape, number, axis):
    """Upstream gradients too, which have the shape of the inputs but for the losses' and the embedding's."""
    near = [normal(*shape) * (1 + i) for i in range(number)]
    with mk.backend("fused"):
        outputs = call(*near)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [normal(*y.shape).to(y.dtype) for y in outputs]
    far = apart([*near, *upstream], axis) if outputs[0].shape == near[0].shape else [*apart(near, axis), *upstream]
    found, expected = run(call, far[:number], far[number:]), run(call, near, upstream)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_wide_rows_are_read_where_they_lie(monkeypatch, row_norm, op):
    for name in ("MAX_FORWARD", "MAX_BACKWARD", "MAX_BACKWARD_WITH_MORE"):
        monkeypatch.setattr(row_norm, name, 4)  # columns: wider rows are walked in a loop
    test_tensors_are_read_where_they_lie(*CASES[op])


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_bias_of_attention_is_read_where_it_lies(axis):
    q, k, v = (normal(3, 3, 3, 16) * i for i in (1, 2, 3))
    bias, dy = normal(3, 3, 3, 3), normal(3, 3, 3, 16)
    found, expected = (run(attended, [q, k, v, b], [dy]) for b in (*apart([bias], axis), bias))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape, axis", [((3, 1), 0), ((1, 3), 1)], ids=["rows", "heads"])
@torch.no_grad()
def test_decoding_reads_where_tensors_lie(shape, axis):
    """One query a row against 40 keys, of which several heads read one."""
    (rows, heads), axis = shape, 2 * axis
    near = [normal(rows, 1, heads, 16), normal(rows, 40, 1, 16), normal(rows, 40, 1, 16)]
    far = [*apart(near[:1], axis), *(apart(near[1:], 0 if axis == 0 else 1))]
    with mk.backend("fused"):
        assert torch.equal(attended(*far), attended(*near))


def test_the_logits_of_a_chunk_are_read_and_written_where_they_lie():
    from minillm_kernels.linear_cross_entropy import fused

    for V in (8, 1040):  # several rows a program, and one
        near = normal(3, V)
        (far,) = apart([near], 0)
        found, expected = (
            fused.losses_and_dlogits(logits, TOKENS, None, (-100, 0.0, 0.0, None), True) for logits in (far, near)
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
