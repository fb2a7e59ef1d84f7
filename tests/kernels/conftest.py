"""The proof ladder's rungs that every op shares, as fixtures: each returns a function.

    gradcheck                  rung 2: the closed-form backward passes torch.autograd.gradcheck in float64
    compare                    rung 3: a backend is as close to the float64 truth as the reference is
    outputs_and_gradients      what both are made of
    poisoned                   memory that a kernel was to write and did not is NaN
    memory_is_given_back       what a test of far addresses took of a GPU
    elementwise, row_norm      the modules of that name, imported by the tests that need Triton and by no others

With a GPU all of it runs there, the kernels compiled; without one the kernels run in Triton's interpreter.

An op is called with tensors by name, so that one dict says which input a failing gradient belongs to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels import dispatch
from torch import Tensor

Op = Callable[..., Any]
Tensors = dict[str, Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _call(op: Op, tensors: Tensors, **options: Any) -> tuple[Tensor, ...]:
    result = op(**tensors, **options)
    return result if isinstance(result, tuple) else (result,)


def _outputs_and_gradients(op: Op, tensors: Tensors, **options: Any) -> Tensors:
    """Return every output of the op by number, and the gradient of every floating input by its name.

    Upstream gradients are normal numbers with 8 significant bits, so that all dtypes get the very same.
    """
    leaves = {
        name: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    outputs = _call(op, leaves, **options)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator).bfloat16().to(y.device, y.dtype) for y in outputs]
    torch.autograd.backward(outputs, upstream)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return found | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _gradcheck(op: Op, tensors: Tensors, **options: Any) -> None:
    names = list(tensors)
    inputs = [t.double().detach().requires_grad_() if t.is_floating_point() else t for t in tensors.values()]
    with mk.backend("reference"):
        assert torch.autograd.gradcheck(
            lambda *values: _call(op, dict(zip(names, values, strict=True)), **options), inputs
        )


def _compare(
    op: Op,
    tensors: Tensors,
    dtype: torch.dtype,
    cast: Iterable[str],
    *,
    terms: float = 0.0,
    name: dispatch.Backend = "torch",
    **options: Any,
) -> None:
    """Assert rung 3 for backend `name` with the inputs named in `cast` in `dtype` and the others as they are.

    Allowed is twice the reference's distance in the same dtype, plus 4 eps of the largest number: two or three
    roundings to `dtype` that the reference, which works in float32, does not have. `terms` is the size of numbers that
    cancel on the way to an answer near 0: their rounding stays.
    """
    low = {key: t.to(DEVICE, dtype) if key in cast else t.to(DEVICE) for key, t in tensors.items()}
    wide = {key: t.double() if t.is_floating_point() else t for key, t in low.items()}
    with mk.backend("reference"):
        truth = _outputs_and_gradients(op, wide, **options)
        plain = _outputs_and_gradients(op, low, **options)
    with mk.backend(name):
        ours = _outputs_and_gradients(op, low, **options)
    assert ours.keys() == truth.keys() == plain.keys()
    for key, t in truth.items():
        o, p = ours[key], plain[key]
        assert o.dtype == p.dtype and o.shape == t.shape, f"{key}: {o.dtype} {tuple(o.shape)}"
        if not t.numel():
            continue
        allowed = 2 * (p.double() - t).abs().max() + 4 * torch.finfo(dtype).eps * max(float(t.abs().max()), terms)
        error = (o.double() - t).abs().max()
        assert error <= allowed, f"{key}: {error:.1e} > {allowed:.1e}"


@pytest.fixture
def outputs_and_gradients() -> Callable[..., Tensors]:
    return _outputs_and_gradients


@pytest.fixture
def gradcheck() -> Callable[..., None]:
    return _gradcheck


@pytest.fixture
def compare() -> Callable[..., None]:
    return _compare


@pytest.fixture
def elementwise() -> ModuleType:
    return importlib.import_module("minillm_kernels.elementwise")


@pytest.fixture
def row_norm() -> ModuleType:
    return importlib.import_module("minillm_kernels.row_norm")


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """Fill all memory that is not initialised with NaN, by PyTorch's own switch; products of its own want it off."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def memory_is_given_back() -> Iterator[None]:
    """Give a GPU's gigabytes back: PyTorch would keep them, in each of the processes in which `make bench` tests."""
    yield
    torch.cuda.empty_cache()


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """Fill what torch.empty and its kin return with NaN: a kernel that leaves out an element of its output fails.

    torch.use_deterministic_algorithms would do that too, but forbids operators that the reference needs on a GPU.
    """

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_and_fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return make_and_fill

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
