"""Shape, dtype and device checks with the house's error text: what was asked, what came, what to pass.

Read next: `dispatch.py`.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def shape_of(tensor: Tensor) -> str:
    """Return a shape as text: (2, 3)."""
    return str(tuple(tensor.shape))


def came(value: object) -> str:
    """Return in a few words what came in the place of a tensor or a number: a list's text may have many lines."""
    if isinstance(value, Tensor):
        return f"a tensor {shape_of(value)}"
    return repr(value) if value is None or isinstance(value, (int, float, complex, str)) else type(value).__name__


def a_tensor(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor; what asks for a dtype, a rank or a shape begins with it."""
    if not isinstance(value, Tensor):
        to_do = "pass one" if value is None else "convert it with torch.as_tensor()"
        raise TypeError(f"{name} must be a tensor, got {came(value)}; {to_do}")


def floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` holds float64, float32, float16 or bfloat16."""
    a_tensor(name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}; convert it first")


def integers(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` holds integers."""
    a_tensor(name, tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {tensor.dtype}; convert it with .long()")


def whole(name: str, value: object) -> None:
    """Raise TypeError unless `value` is an int or torch.compile's symbol for one, ValueError past 64 bits."""
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {came(value)}; convert it with int()")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be an int of 64 bits, got {value}")


def number(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a real number, ValueError for an int past 64 bits."""
    if isinstance(value, int):
        whole(name, value)
    elif not isinstance(value, (float, torch.SymInt, torch.SymFloat, Real)):
        raise TypeError(f"{name} must be a number, got {came(value)}; convert it with float()")


def finite(name: str, value: float) -> None:
    """Raise ValueError for an infinite number and NaN."""
    number(name, value)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def not_negative(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and at least 0."""
    number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def softcap(value: float | None) -> None:
    """Raise ValueError unless there is no cap, or one above 0 and finite."""
    if value is None:
        return
    number("softcap", value)
    if not 0 < value < math.inf:
        raise ValueError(f"softcap must be above 0 and finite, got {value}; None for no cap")


def rank(name: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError unless `tensor` has as many axes as `axes` names, such as "B T H D"."""
    a_tensor(name, tensor)
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{name} must be ({', '.join(axes.split())}), got {shape_of(tensor)}")


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], why: str) -> None:
    """Raise ValueError unless `tensor` has the expected shape; `why` says where that comes from."""
    a_tensor(name, tensor)
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} must be {tuple(expected)}, {why}, got {shape_of(tensor)}")


def same_device(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device."""
    for name, other in others.items():
        if other is not None and other.device != first.device:
            raise ValueError(f"{name} is on {other.device}, {first_name} on {first.device}; move one to the other")


def same_dtype(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Raise TypeError unless all tensors have one dtype."""
    for name, other in others.items():
        if other is not None and other.dtype != first.dtype:
            raise TypeError(f"{name} is {other.dtype}, {first_name} {first.dtype}; convert one to the other")


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor has no numbers, whatever its device: in FakeTensorMode, or inside torch.vmap."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
    return isinstance(tensor, FakeTensor) or wrapped(tensor)


def can_look(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers are there to be checked, without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(tensor)


def indices(name: str, tensor: Tensor, size: int, of: str, error: type[Exception] = ValueError) -> None:
    """Raise `error` unless all numbers are in [0, size), where they can be looked at; `of` says what has that size."""
    if can_look(tensor) and tensor.numel():
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        if low < 0 or high >= size:
            raise error(f"{name} must be in [0, {size}), {of}, got {low} to {high}")


def columns(name: str, tensor: Tensor, axis: str) -> None:
    """Raise ValueError unless `tensor` has a last axis, called `axis`."""
    if not tensor.ndim:
        raise ValueError(f"{name} must be (..., {axis}), got a number, {shape_of(tensor)}; give it an axis")


def bias(x: Tensor, bias: Tensor | None) -> None:
    """Raise TypeError or ValueError unless there is none, or a floating number for each column of `x`, beside it."""
    if bias is not None:
        floating("bias", bias)
        columns("x", x, "C")
        shape("bias", bias, x.shape[-1:], "one bias per column of x")
        same_device("x", x, bias=bias)


def probability(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    number(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def dropout(p: float, seed: object, name: str = "dropout_p") -> None:
    """Raise ValueError unless p is a probability, with a seed where it is above 0; TypeError for what is no seed."""
    probability(name, p)
    if p > 0 and seed is None:
        raise ValueError(f"{name}={p} needs a seed: pass an integer, another one at every call")
    if isinstance(seed, Tensor):
        if seed.ndim or seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} {shape_of(seed)}")
    elif seed is not None and not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
