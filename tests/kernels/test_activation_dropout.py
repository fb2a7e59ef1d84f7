"""Dropout inside of relu, gelu, relu2, swiglu and geglu: against dropout after them, on every backend."""

from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: list[Backend] = ["torch", "reference", "fused"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    pytest.param((2, 8, 64), id="aligned"),
    pytest.param((3, 7, 101), id="ragged"),
    pytest.param((9, 3), id="narrower-than-a-block"),
    pytest.param((1,), id="one"),
    pytest.param((0, 3), id="no-row"),
]
GATED = ("swiglu", "geglu")
OPS = [
    pytest.param("relu", {}, id="relu"),
    pytest.param("gelu", {}, id="gelu"),
    pytest.param("gelu", {"approximate": "tanh"}, id="gelu-tanh"),
    pytest.param("relu2", {}, id="relu2"),
    pytest.param("swiglu", {}, id="swiglu"),
    pytest.param("geglu", {}, id="geglu"),
    pytest.param("geglu", {"approximate": "tanh"}, id="geglu-tanh"),
]
P, SEED = 0.4, 5


def tensors(op: str, shape: tuple[int, ...], bias: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    if op in GATED:
        return {"gate": 3 * torch.randn(shape), "up": torch.randn(shape)}
    return {"x": 3 * torch.randn(shape)} | ({"bias": torch.randn(shape[-1])} if bias else {})


def positive(op: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return inputs for which neither the result nor a gradient is 0 where nothing is dropped."""
    return {name: t.abs() + 1 for name, t in tensors(op, shape, bias=False).items()}


def cast(made: dict[str, Tensor]) -> list[str]:
    return [name for name in made if name != "bias"]


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("op, options", OPS)
def test_result_is_that_of_dropout_after_it(op, options, name):
    made = {key: t.double() for key, t in tensors(op, (3, 7, 10)).items()}
    call = getattr(mk, op)
    with mk.backend(name):
        found = call(**made, **options, dropout_p=P, seed=SEED)
        torch.testing.assert_close(found, mk.dropout(call(**made, **options), P, SEED))


@pytest.mark.parametrize("op, options", OPS)
def test_backward_is_the_derivative(gradcheck, op, options):
    gradcheck(getattr(mk, op), tensors(op, (2, 3, 5)), **options, dropout_p=P, seed=SEED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op, options", OPS)
def test_torch_is_as_close_to_truth_as_reference(compare, op, options, shape, dtype):
    made = tensors(op, shape)
    compare(getattr(mk, op), made, dtype, cast(made), **options, dropout_p=P, seed=SEED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((61, 300), id="many-tiles")])
@pytest.mark.parametrize("op, options", OPS)
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, monkeypatch, elementwise, op, options, shape, bias, dtype):
    if bias and op in GATED:
        return  # they take none
    monkeypatch.setattr(elementwise, "num_sms", lambda device: 1)  # few programs: each sums several tiles
    made = tensors(op, shape, bias)
    compare(getattr(mk, op), made, dtype, cast(made), name="fused", **options, dropout_p=P, seed=torch.tensor(SEED))


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("op", ["gelu", "swiglu"])
def test_strided_input(compare, op, name):
    made = {key: t.mT for key, t in tensors(op, (9, 8, 10), bias=False).items()}
    compare(getattr(mk, op), made, torch.float32, (), name=name, dropout_p=P, seed=SEED)


@pytest.mark.parametrize(
    "seed", [pytest.param(-3, id="negative"), pytest.param(torch.tensor(2**40 + 1, device=DEVICE), id="tensor")]
)
@pytest.mark.parametrize("op, options", OPS)
def test_every_backend_drops_the_elements_that_dropout_drops(op, options, seed):
    made = {key: t.to(DEVICE) for key, t in positive(op, (5, 3, 301)).items()}
    expected = mk.dropout(torch.ones(5, 3, 301, device=DEVICE), P, seed) == 0
    for name in BACKENDS:
        with mk.backend(name):
            assert torch.equal(getattr(mk, op)(**made, **options, dropout_p=P, seed=seed) == 0, expected), name


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("op, options", OPS)
def test_backward_drops_what_forward_dropped(op, options, name):
    leaves = {key: t.to(DEVICE).requires_grad_() for key, t in positive(op, (7, 130)).items()}
    with mk.backend(name):
        y = getattr(mk, op)(**leaves, **options, dropout_p=P, seed=SEED)
    gradients = torch.autograd.grad(y.sum(), list(leaves.values()))
    dropped = y == 0
    assert 0 < dropped.sum() < dropped.numel()
    for key, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(gradient == 0, dropped), key


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("op, options", OPS)
def test_probability_zero_changes_no_bit(outputs_and_gradients, op, options, name):
    call, made = getattr(mk, op), {key: t.to(DEVICE) for key, t in tensors(op, (3, 7, 101)).items()}
    with mk.backend(name):
        plain = outputs_and_gradients(call, {key: t.clone() for key, t in made.items()}, **options)
        found = outputs_and_gradients(call, made, **options, dropout_p=0.0, seed=SEED)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("op, options", OPS)
def test_expectation_is_the_result_without_dropout(op, options, p):
    count = 50_000
    made = {"gate": torch.full((count,), 0.7), "up": torch.full((count,), 1.3)} if op in GATED else {}
    made = made or {"x": torch.full((count,), 0.7)}
    plain = getattr(mk, op)(**{key: t[:1] for key, t in made.items()}, **options).item()
    mean = getattr(mk, op)(**made, **options, dropout_p=p, seed=21).mean().item()
    deviation = plain * (p / (1 - p) / count) ** 0.5  # of the mean of `count` numbers that are 0 or plain / (1 - p)
    assert abs(mean - plain) < 4 * deviation


@pytest.mark.parametrize("op, options", OPS)
def test_kernel_keeps_the_inputs_and_the_seed_and_no_mask(op, options):
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    leaves = {key: t.to(DEVICE).requires_grad_() for key, t in tensors(op, (4, 8)).items()}
    with mk.backend("fused"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        getattr(mk, op)(**leaves, **options, dropout_p=P, seed=SEED)
    inputs = {t.data_ptr() for t in leaves.values()}
    others = [t for t in kept if t.data_ptr() not in inputs]
    assert [(t.shape, t.dtype) for t in others] == [((), torch.int64)]


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("op", ["gelu", "swiglu"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(op, name):
    made = tensors(op, (3, 5))

    def run(seed: Tensor, *inputs: Tensor) -> Tensor:
        return getattr(mk, op)(*inputs, dropout_p=P, seed=seed).square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    found = []
    with mk.backend(name):
        for call in (run, compiled):
            leaves = [t.clone().requires_grad_() for t in made.values()]
            found.append(torch.autograd.grad(call(torch.tensor(SEED), *leaves), leaves))
    torch.testing.assert_close(found[1], found[0])
    torch._dynamo.reset()


MISTAKES: list[Any] = [
    pytest.param({"dropout_p": 1.0, "seed": 1}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0", id="p"),
    pytest.param({"dropout_p": 0.1}, ValueError, "dropout_p=0.1 needs a seed", id="no-seed"),
    pytest.param({"dropout_p": 0.1, "seed": 1.5}, TypeError, "seed must be an int .* got float", id="seed"),
]


@pytest.mark.parametrize("mistake, error, text", MISTAKES)
@pytest.mark.parametrize("op, options", OPS)
def test_mistake_is_one_line(op, options, mistake, error, text):
    call: Callable[..., Tensor] = getattr(mk, op)
    with pytest.raises(error, match=text) as raised:
        call(**tensors(op, (2, 3)), **options, **mistake)
    assert "\n" not in str(raised.value)
