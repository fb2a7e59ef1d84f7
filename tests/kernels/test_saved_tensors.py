"""What a backward pass reads is what the forward pass read: where a tensor was changed in between, that is an error.

PyTorch looks at what an op hands `save_for_backward`; what it keeps elsewhere it would read changed, and the gradient
would be wrong without a word.
"""

from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE)


X, ROW, HEADS = normal(6, 8), normal(8), normal(2, 5, 2, 8)
TOKENS, STOP, ANGLE = torch.tensor([3, 0, 2, 6, 1, 1], device=DEVICE), torch.tensor([3, 2], device=DEVICE), normal(5, 4)
OPS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "rms_norm": (mk.rms_norm, (X, ROW)),
    "layer_norm": (lambda x, w, b, r: mk.layer_norm(x, w, b, residual=r, dropout_p=0.3, seed=5), (X, ROW, ROW, X)),
    "relu": (mk.relu, (X, ROW)),
    "gelu": (lambda x, b: mk.gelu(x, b, approximate="tanh"), (X, ROW)),
    "relu2": (mk.relu2, (X, ROW)),
    "swiglu": (mk.swiglu, (X, X)),
    "geglu": (mk.geglu, (X, X)),
    "rotary": (mk.rotary, (HEADS, HEADS, ANGLE.cos(), ANGLE.sin())),
    "embedding": (mk.embedding, (TOKENS, X.T)),
    "attention": (
        lambda q, k, v, bias, stop: mk.attention(q, k, v, bias=bias, key_stop=stop),
        (HEADS, HEADS, HEADS, normal(1, 2, 5, 5), STOP),
    ),
    "cross_entropy": (mk.cross_entropy, (X, TOKENS)),
    "linear_cross_entropy": (mk.linear_cross_entropy, (X, X.T.mm(X), TOKENS)),
    "linear_cross_entropy of rows": (
        lambda *t: mk.linear_cross_entropy(*t, reduction="none"),
        (X, X.T.mm(X), TOKENS),
    ),
}


def gradients(call: Callable[..., Any], tensors: tuple[Tensor, ...], changed: int | None = None) -> list[Tensor]:
    """Return the gradients of all floating tensors; tensor `changed` is changed in place between the passes."""
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
    given = [t * 1 for t in leaves]  # what is no leaf may be changed
    found = call(*given)
    outputs = found if isinstance(found, tuple) else (found,)
    if changed is not None:
        given[changed].detach().add_(1)
    return list(
        torch.autograd.grad(
            outputs, [t for t in leaves if t.requires_grad], [torch.ones_like(y) for y in outputs], allow_unused=True
        )
    )


@pytest.mark.parametrize("name", ["torch", "reference", "fused"])
@pytest.mark.parametrize("op", OPS)
def test_a_tensor_that_was_changed_is_an_error_or_not_read(op, name):
    call, tensors = OPS[op]
    with mk.backend(name):
        expected = gradients(call, tensors)
        for changed in range(len(tensors)):
            try:
                found = gradients(call, tensors, changed)
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
                continue
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True)), changed
