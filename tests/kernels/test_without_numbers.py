"""Tensors without numbers: empty ones, those of the device meta and of FakeTensorMode, and those inside torch.vmap."""

from contextlib import nullcontext

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels import dispatch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
X, HEADS = torch.randn(2, 8, device=DEVICE), torch.randn(2, 3, 2, 8, device=DEVICE)
TABLE, INDEX = torch.randn(5, 4, device=DEVICE), torch.tensor([4, 0], device=DEVICE)
OPS = {
    "rms_norm": (mk.rms_norm, (X, X[0])),
    "layer_norm": (mk.layer_norm, (X, X[0], X[1])),
    "relu": (mk.relu, (X, X[0])),
    "gelu": (mk.gelu, (X, X[0])),
    "relu2": (mk.relu2, (X,)),
    "swiglu": (mk.swiglu, (X, X)),
    "geglu": (mk.geglu, (X, X)),
    "rotary": (
        lambda x, table, p: mk.rotary(x, x + 1, table, table, positions=p),
        (HEADS, TABLE, INDEX[:, None].expand(2, 3)),
    ),
    "dropout": (lambda x: mk.dropout(x, 0.5, 1), (X,)),
    "embedding": (mk.embedding, (INDEX, TABLE)),
    "attention": (lambda x: mk.attention(x, x + 1, x + 2, causal=True), (HEADS,)),
    "attention-dropout": (lambda x: mk.attention(x, x + 1, x + 2, dropout_p=0.5, seed=1), (HEADS,)),
    "attention_weights": (mk.attention_weights, (HEADS, HEADS)),
    "cross_entropy": (mk.cross_entropy, (X, INDEX)),
    "linear_cross_entropy": (lambda w, t: mk.linear_cross_entropy(w[:2], w, t), (TABLE, INDEX)),
}


WHERE = [(where, name) for where in ("meta", "fake") for name in ("torch", "fused", "reference")]
if not dispatch.INTERPRETED:  # a kernel that is compiled is for tensors of a GPU
    WHERE.remove(("meta", "fused"))


@pytest.mark.parametrize("function, given", OPS.values(), ids=OPS)
@pytest.mark.parametrize("where, name", WHERE)
def test_shape_and_dtype_are_those_of_real_tensors(where, function, given, name):
    described = []
    for real in (True, False):
        mode = FakeTensorMode()
        no_numbers = mode.from_tensor if where == "fake" else lambda x: x.to("meta")
        inputs = given if real else tree_map(no_numbers, given)
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        with mk.backend(name), nullcontext() if real or where == "meta" else mode:
            found = function(*inputs)
            outputs = found if isinstance(found, tuple) else (found,)
            total = sum(y.float().sum() for y in outputs)
            found = [*outputs, *torch.autograd.grad(total, [x for x in inputs if x.requires_grad], allow_unused=True)]
        described.append([None if x is None else (x.shape, x.dtype) for x in found])
    assert described[0] == described[1]


LOOK = {  # ops that look at integers, where there are any
    "embedding": (lambda tokens: mk.embedding(tokens, TABLE), 5, (2,)),
    "cross_entropy": (lambda targets: mk.cross_entropy(X, targets), 8, (2,)),
    "linear_cross_entropy": (lambda targets: mk.linear_cross_entropy(TABLE[:2], TABLE, targets), 5, (2,)),
    "rotary": (lambda positions: mk.rotary(HEADS, HEADS, TABLE, TABLE, positions=positions)[0], 5, (2, 3)),
}


@pytest.mark.parametrize("op, name", [(op, name) for op in LOOK for name in ("fused", "torch")][:-1])
def test_vmap_over_integers_is_a_loop_over_them(op, name):
    """But for rotary on the `torch` backend, whose backward pass by hand PyTorch refuses there."""
    function, below, shape = LOOK[op]
    several = torch.randint(below, (4, *shape), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with mk.backend(name):
        found = torch.func.vmap(function)(several)
        expected = torch.stack([function(one) for one in several])
    torch.testing.assert_close(found, expected)


NOTHING = torch.randn(3, 0, device=DEVICE)
EMPTY = {
    "rms_norm": (mk.rms_norm, (NOTHING, NOTHING[0], NOTHING[1])),
    "layer_norm": (mk.layer_norm, (NOTHING, NOTHING[0], NOTHING[1])),
    "relu": (mk.relu, (NOTHING, NOTHING[0])),
    "gelu": (mk.gelu, (NOTHING, NOTHING[0])),
    "relu2": (mk.relu2, (NOTHING, NOTHING[0])),
    "embedding": (mk.embedding, (INDEX // 2, NOTHING)),
    "linear_cross_entropy": (mk.linear_cross_entropy, (NOTHING[:2], torch.randn(5, 0, device=DEVICE), INDEX)),
}


@pytest.mark.parametrize("name", ["torch", "fused", "reference"])
@pytest.mark.parametrize("function, given", EMPTY.values(), ids=EMPTY)
def test_rows_without_columns_have_gradients_without_any(function, given, name):
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in given]
    with mk.backend(name):
        y = function(*inputs)
        gradients = torch.autograd.grad(y, [x for x in inputs if x.requires_grad], torch.ones_like(y))
    assert [x.shape for x in gradients] == [x.shape for x in inputs if x.requires_grad]
