"""relu2: the maths against torch in float64, the backward against finite differences, one backend against another."""

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


def tensors(shape, *, bias) -> dict[str, Any]:
    torch.manual_seed(0)
    made = {"x": 3 * torch.randn(shape)}
    return (made | {"bias": torch.randn(shape[-1])}) if bias else made


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_that_of_torch(shape, bias, name):
    made = {key: t.double() for key, t in tensors(shape, bias=bias).items()}
    with mk.backend(name):
        y = mk.relu2(**made)
    torch.testing.assert_close(y, functional.relu(sum(made.values(), start=torch.zeros(()))) ** 2)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_backward_is_the_derivative(gradcheck, bias):
    gradcheck(mk.relu2, tensors((2, 3, 5), bias=bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, bias, dtype):
    compare(mk.relu2, tensors(shape, bias=bias), dtype, ("x",))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((61, 300), id="many-tiles")])
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, monkeypatch, elementwise, shape, bias, dtype):
    monkeypatch.setattr(elementwise, "num_sms", lambda device: 1)  # few programs: each sums several tiles
    compare(mk.relu2, tensors(shape, bias=bias), dtype, ("x",), name="fused")


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", VIEWS)
def test_strided_input(compare, view, name):
    x = view(torch.randn(9, 8, 10))
    compare(mk.relu2, {"x": x, "bias": torch.randn(2 * x.shape[-1])[::2]}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", BACKENDS)
def test_float32_bias_keeps_its_digits_beside_a_narrow_x(name):
    """In bfloat16 1 + 2^-10 is 1 and the sum with -1 is 0; the maths in between is in float32, in both passes."""
    x = torch.tensor([-1.0], dtype=torch.bfloat16, device=DEVICE)
    bias = torch.tensor([1 + 2.0**-10], device=DEVICE, requires_grad=True)
    with mk.backend(name):
        y = mk.relu2(x, bias)
    (dbias,) = torch.autograd.grad(y, bias)
    assert y > 0 and dbias == 2.0**-9


@pytest.mark.parametrize("name", BACKENDS)
def test_slope_at_zero_is_zero(outputs_and_gradients, name):
    with mk.backend(name):
        found = outputs_and_gradients(mk.relu2, {"x": torch.zeros(3, device=DEVICE)})
    assert torch.equal(found["dx"].cpu(), torch.zeros(3))


@pytest.mark.parametrize("name", BACKENDS)
def test_nan_stays_nan(name):
    with mk.backend(name):
        assert mk.relu2(torch.tensor([float("nan")], device=DEVICE)).isnan()


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda: mk.relu2(X.long()), TypeError, "x must be .* got torch.int64", id="x-dtype"),
        pytest.param(lambda: mk.relu2(X[0, 0], X[0, 0]), ValueError, "x must be .* got a number", id="no-column"),
        pytest.param(lambda: mk.relu2(X, X[0].int()), TypeError, "bias must be .* got torch.int32", id="bias-dtype"),
        pytest.param(lambda: mk.relu2(X, X[0, :2]), ValueError, r"bias must be \(3,\).* got \(2,\)", id="bias"),
        pytest.param(lambda: mk.relu2(X, X[0].to("meta")), ValueError, "bias is on meta", id="device"),
    ],
)
def test_mistake_is_one_line(call, error, text):
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)
