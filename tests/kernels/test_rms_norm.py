"""rms_norm: the maths against torch in float64, the backward against finite differences, the backends compared."""

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
        torch.testing.assert_close(mk.rms_norm(x, weight, eps=1e-3), functional.rms_norm(x, shape[-1:], weight, 1e-3))


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_options_are_the_formula(name):
    x, weight, bias, residual = (t.double() for t in tensors((3, 7, 10), ("bias", "residual")).values())
    with mk.backend(name):
        y, s = mk.rms_norm(x, weight, bias, eps=1e-6, residual=residual, dropout_p=0.4, seed=5)
    torch.testing.assert_close(s, mk.dropout(x, 0.4, 5) + residual)
    torch.testing.assert_close(y, functional.rms_norm(s, (10,), weight, 1e-6) + bias)


@pytest.mark.parametrize("extra, options", OPTIONS)
def test_backward_is_the_derivative(gradcheck, extra, options):
    gradcheck(mk.rms_norm, tensors((2, 3, 5), extra), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra, options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, extra, options, dtype):
    # In a row of one column all gradients cancel: there eps is 1, which makes 1 / sqrt(... + eps) at most 1.
    one = {"eps": 1.0, "terms": 4.0} if shape[-1] == 1 else {}
    compare(mk.rms_norm, tensors(shape, extra), dtype, ("x", "residual"), **one, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra, options", OPTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((150, 60), id="many-rows")])
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, monkeypatch, row_norm, shape, extra, options, dtype):
    monkeypatch.setattr(row_norm, "num_sms", lambda device: 1)  # four programs: of ten tiles some have three
    one = {"eps": 1.0, "terms": 4.0} if shape[-1] == 1 else {}
    compare(mk.rms_norm, tensors(shape, extra), dtype, ("x", "residual"), name="fused", **one, **options)


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
    compare(mk.rms_norm, tensors((9, 150), extra), dtype, ("x", "residual"), name="fused", **options)


@pytest.mark.parametrize("name", BACKENDS)
def test_scale_of_a_row_does_not_matter(name):
    x, weight = (t.to(DEVICE) for t in tensors((4, 32)).values())
    with mk.backend(name):  # a power of two changes no digit
        assert torch.equal(mk.rms_norm(x * 1024, weight, eps=0.0), mk.rms_norm(x, weight, eps=0.0))


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(name):
    made = tensors((3, 5, 8), ("bias", "residual"))

    def run(x, weight, bias, residual):
        y, s = mk.rms_norm(x, weight, bias, residual=residual, dropout_p=0.4, seed=5)
        return (y * s).sum()

    found = []
    with mk.backend(name):
        for call in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
            leaves = [t.clone().requires_grad_() for t in made.values()]
            loss = call(*leaves)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(found[1], found[0])
