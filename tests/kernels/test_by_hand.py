"""by_hand: what each pass that is written by hand is marked with, and what the marks are for."""

import importlib
import pkgutil

import minillm_kernels
import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.by_hand import own_result


def functions() -> list[type[torch.autograd.Function]]:
    """Return every autograd.Function of the package that torch.compile may meet; the ladder's launch kernels."""
    found = set()
    for module in pkgutil.walk_packages(minillm_kernels.__path__, "minillm_kernels."):
        if module.name.endswith(("reference", "composed")):
            made = vars(importlib.import_module(module.name)).values()
            found |= {f for f in made if isinstance(f, type) and issubclass(f, torch.autograd.Function)}
    return sorted(found - {torch.autograd.Function}, key=lambda f: (f.__module__, f.__name__))


def test_there_are_functions_to_look_at():
    assert len(functions()) > 10


@pytest.mark.parametrize("function", functions(), ids=lambda f: f"{f.__module__.removeprefix('minillm_kernels.')}")
def test_every_result_is_its_own_to_the_compiler(function):
    assert hasattr(function.forward, "__wrapped__"), "mark forward with @own_result"


RESULTS = {
    "in-place": lambda h: (h * 1).clamp_(min=0),
    "to-its-own-dtype": lambda h: h.clamp(min=0).to(h.dtype),
    "contiguous": lambda h: h.clamp(min=0).contiguous(),
    "two": lambda h: (h.clamp(min=0).to(h.dtype), h.to(h.dtype)),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_gradient_survives_the_compiler(result):
    """Without the mark PyTorch 2.11 gives zeros; 2.13 is right with and without."""

    class Clamp(torch.autograd.Function):
        @staticmethod
        @own_result
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return result(x)

        @staticmethod
        def backward(ctx, *grads):
            (x,) = ctx.saved_tensors
            return torch.where(x > 0, grads[0], 0.0)

    def call(x):
        y = Clamp.apply(x)
        return (y[0] if isinstance(y, tuple) else y).square().sum()

    x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    torch._dynamo.reset()
    (found,) = torch.autograd.grad(torch.compile(call, backend="aot_eager", fullgraph=True)(x), x)
    assert found.tolist() == [0.0, 4.0, 6.0]


def test_outside_of_the_compiler_nothing_is_done():
    y = torch.ones(2)
    assert own_result(lambda ctx, y: y)(None, y) is y


X = torch.linspace(-2.0, 2.0, 16, dtype=torch.float64).view(2, 8)
OPS = {
    "rms_norm": lambda x: mk.rms_norm(x, torch.ones(8).double()),
    "layer_norm": lambda x: mk.layer_norm(x, torch.arange(8).double()),
    "gelu": mk.gelu,
    "relu2": mk.relu2,
    "swiglu": lambda x: mk.swiglu(x, x.sin()),
    "geglu": lambda x: mk.geglu(x, x.sin()),
    "rotary": lambda x: mk.rotary(*[x.view(1, 2, 2, 4).sin()] * 2, torch.eye(2).double(), torch.ones(2, 2).double())[0],
    "attention": lambda x: mk.attention(*[x.view(1, 2, 2, 4)] * 3, softcap=2.0),
    "cross_entropy": lambda x: mk.cross_entropy(x, torch.tensor([3, 0])),
    "linear_cross_entropy": lambda x: mk.linear_cross_entropy(x, torch.eye(8).double(), torch.tensor([3, 0])),
}


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_second_derivative_of_a_sum_with_other_terms_is_whole_or_refused(op, name):
    """torch.autograd.grad leaves out what has no way to its inputs: the other terms alone would be the answer."""

    def gradient(x, create_graph=False):
        with mk.backend(name):
            return torch.autograd.grad(op(x).sum() + (x**3).sum(), x, create_graph=create_graph)[0]

    x, direction, step = X.clone().requires_grad_(), X.cos(), 1e-5
    try:
        (found,) = torch.autograd.grad(gradient(x, create_graph=True), x, direction)
    except RuntimeError:
        return
    apart = [gradient((X + sign * step * direction).requires_grad_()) for sign in (1, -1)]
    torch.testing.assert_close(found, (apart[0] - apart[1]) / (2 * step), rtol=1e-5, atol=1e-5)
