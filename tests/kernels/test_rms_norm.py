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


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", [lambda t: t.mT, lambda t: t[::2, 1:8:3]], ids=["transposed", "sliced"])
def test_strided_input(compare, view, name):
    made = {name: view(torch.randn(9, 8, 10)) for name in ("x", "residual")}
    weight = torch.randn(3 * made["x"].shape[-1])[::3]
    compare(mk.rms_norm, made | {"weight": weight}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", BACKENDS)
def test_scale_of_a_row_does_not_matter(name):
    x, weight = (t.to(DEVICE) for t in tensors((4, 32)).values())
    with mk.backend(name):  # a power of two changes no digit
        assert torch.equal(mk.rms_norm(x * 1024, weight, eps=0.0), mk.rms_norm(x, weight, eps=0.0))


@pytest.mark.parametrize("name", BACKENDS)
def test_bias_may_be_narrower_than_weight(name):
    x, weight, bias = (t.to(DEVICE) for t in tensors((3, 5), ("bias",)).values())
    narrow = bias.bfloat16()
    with mk.backend(name):
        assert torch.equal(mk.rms_norm(x, weight, narrow), mk.rms_norm(x, weight, narrow.float()))


@pytest.mark.parametrize("name", BACKENDS)
def test_gradient_of_a_float32_bias_keeps_its_digits_beside_a_narrow_weight(name):
    """In bfloat16 257 is 256."""
    x, weight = torch.randn(257, 4, device=DEVICE), torch.ones(4, dtype=torch.bfloat16, device=DEVICE)
    bias = torch.zeros(4, device=DEVICE, requires_grad=True)
    with mk.backend(name):
        mk.rms_norm(x, weight, bias).sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [257.0] * 4


@pytest.mark.parametrize("name", BACKENDS)
def test_row_of_zeros_is_finite(outputs_and_gradients, name):
    made = {"x": torch.zeros(2, 4, device=DEVICE), "weight": torch.ones(4, device=DEVICE)}
    with mk.backend(name):
        found = outputs_and_gradients(mk.rms_norm, made)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("name", BACKENDS)
def test_only_the_sum_is_used(name):
    """The pre-norm residual stream of a last layer: y drops out of the graph, s stays."""
    x, residual = torch.randn(2, 4, device=DEVICE, requires_grad=True), torch.randn(2, 4, device=DEVICE)
    with mk.backend(name):
        mk.rms_norm(x, torch.ones(4, device=DEVICE), residual=residual)[1].sum().backward()
    assert x.grad is not None and torch.equal(x.grad.cpu(), torch.ones(2, 4))


def test_second_derivative_of_reference_is_an_error():
    x = torch.randn(2, 4, requires_grad=True)
    with mk.backend("reference"), pytest.raises(RuntimeError, match="by hand has no second derivative"):
        torch.autograd.grad(mk.rms_norm(x, torch.ones(4)).square().sum(), x, create_graph=True)


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


X = torch.zeros(2, 3)
W = torch.ones(3)


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda: mk.rms_norm(X.long(), W), TypeError, "x must be .* got torch.int64", id="x-dtype"),
        pytest.param(lambda: mk.rms_norm(X[0, 0], W[0]), ValueError, "x must be .* got a number", id="no-column"),
        pytest.param(lambda: mk.rms_norm(X, W.int()), TypeError, "weight must be", id="weight-dtype"),
        pytest.param(lambda: mk.rms_norm(X, W, W.int()), TypeError, "bias must be", id="bias-dtype"),
        pytest.param(lambda: mk.rms_norm(X, W[:2]), ValueError, r"weight must be \(3,\).* got \(2,\)", id="weight"),
        pytest.param(lambda: mk.rms_norm(X, W, W[:1]), ValueError, r"bias must be \(3,\)", id="bias"),
        pytest.param(
            lambda: mk.rms_norm(X, W, residual=X[:1]), ValueError, r"residual must be \(2, 3\)", id="residual"
        ),
        pytest.param(lambda: mk.rms_norm(X, W, residual=X.half()), TypeError, "residual is", id="residual-dtype"),
        pytest.param(lambda: mk.rms_norm(X, W.to("meta")), ValueError, "weight is on meta", id="device"),
        pytest.param(lambda: mk.rms_norm(X, W, dropout_p=1.0, seed=1), ValueError, "dropout_p must be in", id="p"),
        pytest.param(lambda: mk.rms_norm(X, W, dropout_p=0.1), ValueError, "needs a seed", id="seed"),
    ],
)
def test_mistake_is_one_line(call, error, text):
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)
