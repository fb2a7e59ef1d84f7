"""swiglu: the maths against torch in float64, the backward against finite differences, one backend against another."""

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


def tensors(shape) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"gate": 3 * torch.randn(shape), "up": torch.randn(shape)}


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_that_of_torch(shape, name):
    gate, up = (t.double() for t in tensors(shape).values())
    with mk.backend(name):
        torch.testing.assert_close(mk.swiglu(gate, up), functional.silu(gate) * up)


def test_backward_is_the_derivative(gradcheck):
    gradcheck(mk.swiglu, tensors((2, 3, 5)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, dtype):
    compare(mk.swiglu, tensors(shape), dtype, ("gate", "up"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, shape, dtype):
    compare(mk.swiglu, tensors(shape), dtype, ("gate", "up"), name="fused")


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", VIEWS)
def test_strided_input(compare, view, name):
    compare(mk.swiglu, {key: view(torch.randn(9, 8, 10)) for key in ("gate", "up")}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_halves_of_one_product(compare, name):
    """What a feed-forward layer with one joint projection passes: two views of one tensor."""
    gate, up = torch.randn(3, 5, 14).chunk(2, dim=-1)
    compare(mk.swiglu, {"gate": gate, "up": up}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", BACKENDS)
def test_large_gates_are_finite(outputs_and_gradients, name):
    gate = torch.tensor([-1e38, -1e20, -1e4, -200.0, 200.0, 1e4], device=DEVICE)
    made = {"gate": gate, "up": torch.ones(6, device=DEVICE)}
    with mk.backend(name):
        found = outputs_and_gradients(mk.swiglu, made)
    torch.testing.assert_close(found["output 0"], made["gate"].clamp(min=0))
    assert found["dgate"].isfinite().all() and found["dup"].isfinite().all()


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda: mk.swiglu(X.long(), X), TypeError, "gate must be .* got torch.int64", id="gate-dtype"),
        pytest.param(
            lambda: mk.swiglu(X, X.half()), TypeError, "up is torch.float16, gate torch.float32", id="two-dtypes"
        ),
        pytest.param(lambda: mk.swiglu(X, X[:1]), ValueError, r"up must be \(2, 3\).* got \(1, 3\)", id="shape"),
        pytest.param(lambda: mk.swiglu(X, X.to("meta")), ValueError, "up is on meta", id="device"),
    ],
)
def test_mistake_is_one_line(call, error, text):
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)
