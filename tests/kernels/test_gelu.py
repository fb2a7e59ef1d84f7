"""gelu: the maths against torch in float64, the backward against finite differences, one backend against another."""

import math
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend
from torch.nn import functional

SHAPES = [
    pytest.param((2, 8, 64), id="aligned"),
    pytest.param((3, 7, 100), id="ragged"),
    pytest.param((1,), id="one"),
    pytest.param((0, 3), id="no-row"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: list[Backend] = ["torch", "reference", "fused"]
VIEWS = [pytest.param(lambda t: t.mT, id="transposed"), pytest.param(lambda t: t[::2, 1:8:3], id="sliced")]

APPROXIMATE = ["none", "tanh"]


def tensors(shape, *, bias) -> dict[str, Any]:
    torch.manual_seed(0)
    made = {"x": 3 * torch.randn(shape)}
    return (made | {"bias": torch.randn(shape[-1])}) if bias else made


@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_that_of_torch(shape, bias, name, approximate):
    made = {key: t.double() for key, t in tensors(shape, bias=bias).items()}
    with mk.backend(name):
        y = mk.gelu(**made, approximate=approximate)
    torch.testing.assert_close(y, functional.gelu(sum(made.values(), start=torch.zeros(())), approximate=approximate))


@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_backward_is_the_derivative(gradcheck, bias, approximate):
    gradcheck(mk.gelu, tensors((2, 3, 5), bias=bias), approximate=approximate)


@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, bias, dtype, approximate):
    compare(mk.gelu, tensors(shape, bias=bias), dtype, ("x",), approximate=approximate)


@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((61, 300), id="many-tiles")])
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, monkeypatch, elementwise, shape, bias, dtype, approximate):
    monkeypatch.setattr(elementwise, "num_sms", lambda device: 1)  # few programs: each sums several tiles
    compare(mk.gelu, tensors(shape, bias=bias), dtype, ("x",), name="fused", approximate=approximate)


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", VIEWS)
def test_strided_input(compare, view, name):
    x = view(torch.randn(9, 8, 10))
    compare(mk.gelu, {"x": x, "bias": torch.randn(2 * x.shape[-1])[::2]}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", BACKENDS)
def test_float32_bias_keeps_its_digits_beside_a_narrow_x(name):
    """In bfloat16 1 + 2^-10 is 1 and the sum with -1 is 0; the maths in between is in float32, in both passes."""
    x = torch.tensor([-1.0], dtype=torch.bfloat16, device=DEVICE)
    bias = torch.tensor([1 + 2.0**-10], device=DEVICE, requires_grad=True)
    with mk.backend(name):
        y = mk.gelu(x, bias)
    (dbias,) = torch.autograd.grad(y, bias)
    assert y > 0 and abs(dbias - (0.5 + 2.0**-9 / math.sqrt(2 * math.pi))) < 1e-4  # of the slope at 2^-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("name", BACKENDS)
def test_far_from_zero_it_is_relu_with_a_finite_slope(outputs_and_gradients, name, approximate, dtype):
    x = torch.tensor([-1e4, -50.0, 50.0, 1e4], dtype=dtype, device=DEVICE)
    with mk.backend(name):
        found = outputs_and_gradients(mk.gelu, {"x": x}, approximate=approximate)
    torch.testing.assert_close(found["output 0"], x.clamp(min=0))
    assert found["dx"].isfinite().all()


@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("name", BACKENDS)
def test_slope_far_from_zero_is_0_or_1(name, approximate):
    x = torch.tensor([-1e12, -1e6, -100.0, 100.0, 1e6, 1e12], device=DEVICE, requires_grad=True)
    with mk.backend(name):
        mk.gelu(x, approximate=approximate).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("approximate", APPROXIMATE)
@pytest.mark.parametrize("name", BACKENDS)
def test_nan_stays(outputs_and_gradients, name, approximate, dtype):
    x = torch.tensor([math.nan, 1.0], dtype=dtype, device=DEVICE)
    with mk.backend(name):
        found = outputs_and_gradients(mk.gelu, {"x": x}, approximate=approximate)
    assert all(t.isnan().tolist() == [True, False] for t in found.values())


LAST_NORMAL = 12.9375  # Phi(-u) is a normal number of float32 up to here, 12.95; a GPU's exp2 makes 0 of smaller ones


def narrow() -> Any:
    """Return what the kernels compute for 16-bit tensors; on float32 ones its own error shows."""
    from minillm_kernels.gelu import fused

    function = fused.FUNCTIONS["none"].narrow
    assert function is not None
    return function


def truths(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Phi(h) and the slope of gelu in float64."""
    wide = h.double().cpu()
    distribution = torch.tensor([math.erfc(-value * math.sqrt(0.5)) / 2 for value in wide.tolist()])
    density = torch.exp(-wide.square() / 2) / math.sqrt(2 * math.pi)
    return distribution, distribution + wide * density


def test_error_of_the_tail_is_what_its_comment_says(elementwise):
    from minillm_kernels.gelu import fused

    u = torch.arange(13 * 2048 + 1, device=DEVICE) / 2048
    tail = elementwise.unary_forward(u, None, None, elementwise.Function(fused.normal_tail, None), 0.0).cpu()
    error = (tail.double() / truths(-u)[0] - 1).abs()
    near, normal = u.cpu() <= 5.5, u.cpu() <= LAST_NORMAL
    assert 0.8e-5 < error[near].max() < 1.2e-5 and 5e-5 < error[normal].max() < 8e-5
    assert tail[~normal].max() < 1.01 * tail[normal].min()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_polynomial_loses_nothing_that_16_bits_show(elementwise, dtype):
    """At every number of the dtype up to there in float32 arithmetic: what is lost beside half a step of the result."""
    h = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    h = h[(h.abs() <= LAST_NORMAL) & (h.abs() >= 2.0**-14)].to(DEVICE)
    value = elementwise.unary_forward(h, None, None, narrow(), 0.0).double().cpu()
    slope = elementwise.unary_backward(torch.ones_like(h), h, None, None, narrow(), 0.0)[0].double().cpu()
    distribution, true_slope = truths(h)
    info = torch.finfo(dtype)
    for found, true, allowed in ((value, h.double().cpu() * distribution, 0.05), (slope, true_slope, 0.1)):
        half_step = torch.exp2(true.abs().clamp(min=info.tiny).log2().floor()) * info.eps / 2
        lost = (found - true).abs() / half_step
        lost[(h.cpu() + 0.75179).abs() < 0.01] = 0  # where the slope is 0: float32 has few digits of it either way
        assert lost.max() < allowed, f"{lost.max():.3f} at {h[lost.argmax()]}"


def test_tanh_is_as_far_from_the_definition_as_the_docstring_says():
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    far = (mk.gelu(x) - mk.gelu(x, approximate="tanh")).abs().max()
    assert 4e-4 < far <= 5e-4


X = torch.zeros(2, 3)
WORD: Any = "erf"


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda: mk.gelu(X.long()), TypeError, "x must be .* got torch.int64", id="x-dtype"),
        pytest.param(lambda: mk.gelu(X[0, 0], X[0, 0]), ValueError, "x must be .* got a number", id="no-column"),
        pytest.param(lambda: mk.gelu(X, X[0].int()), TypeError, "bias must be .* got torch.int32", id="bias-dtype"),
        pytest.param(lambda: mk.gelu(X, X[0, :2]), ValueError, r"bias must be \(3,\).* got \(2,\)", id="bias"),
        pytest.param(lambda: mk.gelu(X, X[0].to("meta")), ValueError, "bias is on meta", id="device"),
        pytest.param(lambda: mk.gelu(X, approximate=WORD), ValueError, "'none' or 'tanh', got 'erf'", id="word"),
    ],
)
def test_mistake_is_one_line(call, error, text):
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)
