"""What rms_norm and layer_norm have in common: strides, dtypes, what is used of their results, and mistakes."""

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: list[Backend] = ["torch", "reference", "fused"]
NORM = pytest.mark.parametrize("op", [mk.rms_norm, mk.layer_norm], ids=["rms_norm", "layer_norm"])


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", [lambda t: t.mT, lambda t: t[::2, 1:8:3]], ids=["transposed", "sliced"])
@NORM
def test_strided_input(op, compare, view, name):
    made = {name: view(torch.randn(9, 8, 10)) for name in ("x", "residual")}
    weight = torch.randn(3 * made["x"].shape[-1])[::3]
    compare(op, made | {"weight": weight}, torch.float32, (), name=name)


@pytest.mark.parametrize("name", BACKENDS)
@NORM
def test_bias_may_be_narrower_than_weight(op, name):
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((3, 5), (5,), (5,)))
    narrow = bias.bfloat16()
    with mk.backend(name):
        assert torch.equal(op(x, weight, narrow), op(x, weight, narrow.float()))


@pytest.mark.parametrize("name", BACKENDS)
@NORM
def test_gradient_of_a_float32_bias_keeps_its_digits_beside_a_narrow_weight(op, name):
    """In bfloat16 257 is 256."""
    x, weight = torch.randn(257, 4, device=DEVICE), torch.ones(4, dtype=torch.bfloat16, device=DEVICE)
    bias = torch.zeros(4, device=DEVICE, requires_grad=True)
    with mk.backend(name):
        op(x, weight, bias).sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [257.0] * 4


@pytest.mark.parametrize("name", BACKENDS)
@NORM
def test_row_of_zeros_is_finite(op, outputs_and_gradients, name):
    made = {"x": torch.zeros(2, 4, device=DEVICE), "weight": torch.ones(4, device=DEVICE)}
    with mk.backend(name):
        found = outputs_and_gradients(op, made)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("name", BACKENDS)
@NORM
def test_only_the_sum_is_used(op, name):
    """The pre-norm residual stream of a last layer: y drops out of the graph, s stays."""
    x, residual = torch.randn(2, 4, device=DEVICE, requires_grad=True), torch.randn(2, 4, device=DEVICE)
    with mk.backend(name):
        op(x, torch.ones(4, device=DEVICE), residual=residual)[1].sum().backward()
    assert x.grad is not None and torch.equal(x.grad.cpu(), torch.ones(2, 4))


@NORM
def test_second_derivative_of_reference_is_an_error(op):
    x = torch.randn(2, 4, requires_grad=True)
    with mk.backend("reference"), pytest.raises(RuntimeError, match="by hand has no second derivative"):
        torch.autograd.grad(op(x, torch.ones(4)).square().sum(), x, create_graph=True)


X = torch.zeros(2, 3)
W = torch.ones(3)


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda op: op(X.long(), W), TypeError, "x must be .* got torch.int64", id="x-dtype"),
        pytest.param(lambda op: op(X[0, 0], W[0]), ValueError, "x must be .* got a number", id="no-column"),
        pytest.param(lambda op: op(X, W.int()), TypeError, "weight must be", id="weight-dtype"),
        pytest.param(lambda op: op(X, W, W.int()), TypeError, "bias must be", id="bias-dtype"),
        pytest.param(lambda op: op(X, W[:2]), ValueError, r"weight must be \(3,\).* got \(2,\)", id="weight"),
        pytest.param(lambda op: op(X, W, W[:1]), ValueError, r"bias must be \(3,\)", id="bias"),
        pytest.param(lambda op: op(X, W, residual=X[:1]), ValueError, r"residual must be \(2, 3\)", id="residual"),
        pytest.param(lambda op: op(X, W, residual=X.half()), TypeError, "residual is", id="residual-dtype"),
        pytest.param(lambda op: op(X, W.to("meta")), ValueError, "weight is on meta", id="device"),
        pytest.param(lambda op: op(X, W, dropout_p=1.0, seed=1), ValueError, "dropout_p must be in", id="p"),
        pytest.param(lambda op: op(X, W, dropout_p=0.1), ValueError, "needs a seed", id="seed"),
    ],
)
@NORM
def test_mistake_is_one_line(op, call, error, text):
    with pytest.raises(error, match=text) as raised:
        call(op)
    assert "\n" not in str(raised.value)
