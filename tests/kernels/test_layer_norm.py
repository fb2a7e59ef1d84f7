"""layer_norm: the maths against torch in float64, the backward against finite differences, the backends compared."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend
from torch.nn import functional

SHAPES = [
    pytest.param((2, 8, 64), id="aligned"),
    pytest.param((3, 7, 100), id="ragged"),
    pytest.param((1, 1, 1), id="one"),
    pytest.param((5,), id="one-row"),
    pytest.param((0, 3), id="no-row"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: list[Backend] = ["torch", "reference", "fused"]
OPTIONS = [
    pytest.param((), {}, id="plain"),
    pytest.param(("bias",), {}, id="bias"),
    pytest.param(("residual",), {}, id="residual"),
    pytest.param((), {"dropout_p": 0.4, "seed": 5}, id="dropout"),
    pytest.param(("bias", "residual"), {"dropout_p": 0.4, "seed": torch.tensor(5)}, id="all"),
]


def tensors(shape, extra=()) -> dict[str, Any]:
    torch.manual_seed(0)
    made = {"x": torch.randn(shape) * 2 + 0.5, "weight": torch.randn(shape[-1])}
    return made | {name: torch.randn(shape[-1] if name == "bias" else shape) for name in extra}


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_that_of_torch(shape, name):
    x, weight = (t.double() for t in tensors(shape).values())
    with mk.backend(name):
        ours = mk.layer_norm(x, weight, eps=1e-3)
    torch.testing.assert_close(ours, functional.layer_norm(x, shape[-1:], weight, eps=1e-3))


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_options_are_the_formula(name):
    x, weight, bias, residual = (t.double() for t in tensors((3, 7, 10), ("bias", "residual")).values())
    with mk.backend(name):
        y, s = mk.layer_norm(x, weight, bias, eps=1e-6, residual=residual, dropout_p=0.4, seed=5)
    torch.testing.assert_close(s, mk.dropout(x, 0.4, 5) + residual)
    torch.testing.assert_close(y, functional.layer_norm(s, (10,), weight, bias, 1e-6))


@pytest.mark.parametrize("extra, options", OPTIONS)
def test_backward_is_the_derivative(gradcheck, extra, options):
    gradcheck(mk.layer_norm, tensors((2, 3, 5), extra), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra, options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, extra, options, dtype):
    # In a row of one column all gradients cancel: there eps is 1, which makes 1 / sqrt(... + eps) at most 1.
    one = {"eps": 1.0, "terms": 4.0} if shape[-1] == 1 else {}
    compare(mk.layer_norm, tensors(shape, extra), dtype, ("x", "residual"), **one, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra, options", OPTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((150, 60), id="many-rows")])
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, monkeypatch, row_norm, shape, extra, options, dtype):
    monkeypatch.setattr(row_norm, "num_sms", lambda device: 1)  # four programs: of ten tiles some have three
    one = {"eps": 1.0, "terms": 4.0} if shape[-1] == 1 else {}
    compare(mk.layer_norm, tensors(shape, extra), dtype, ("x", "residual"), name="fused", **one, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra, options", [OPTIONS[0], OPTIONS[-1]])
@pytest.mark.usefixtures("poisoned")
def test_kernel_for_wide_rows_is_as_close_to_truth(compare, monkeypatch, row_norm, extra, options, dtype):
    """The loop over a row, at a width that the interpreter can afford: three steps, the last of them ragged."""
    for name, width in (
        ("MAX_FORWARD", 64),
        ("MAX_BACKWARD", 64),
        ("MAX_BACKWARD_WITH_MORE", 64),
        ("WIDE_BLOCK_C", 64),
    ):
        monkeypatch.setattr(row_norm, name, width)
    monkeypatch.setattr(row_norm, "num_sms", lambda device: 1)
    # two programs sum the rows: of three tiles one has two
    monkeypatch.setattr(row_norm, "threads_per_sm", lambda *_: 2 * row_norm.WEIGHT_THREADS)
    compare(mk.layer_norm, tensors((9, 150), extra), dtype, ("x", "residual"), name="fused", **options)


@pytest.mark.parametrize("name", BACKENDS)
def test_large_mean_costs_no_digits_beyond_those_of_the_input(name):
    """With a mean of 2^12, mean(x^2) - mean(x)^2 would leave no correct digit of the variance in float32."""
    x, weight = (
        (torch.randn(4, 64).mul(256).round() / 256).to(DEVICE),
        torch.ones(64, device=DEVICE),
    )  # x + 4096 is exact in float32
    plain = functional.layer_norm(x.double(), (64,), weight.double(), eps=0.0)
    with mk.backend(name):
        shifted = mk.layer_norm(x + 4096, weight, eps=0.0)
    # the mean of 64 numbers near 4096 is known to about an ulp, 2^-11; the deviation is about 1
    torch.testing.assert_close(shifted.double(), plain, atol=2**-10, rtol=0)


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(name):
    made = tensors((3, 5, 8), ("bias", "residual"))

    def run(x, weight, bias, residual):
        y, s = mk.layer_norm(x, weight, bias, residual=residual)
        return (y * s).sum()

    found = []
    with mk.backend(name):
        for call in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
            leaves = [t.clone().requires_grad_() for t in made.values()]
            loss = call(*leaves)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(found[1], found[0])
