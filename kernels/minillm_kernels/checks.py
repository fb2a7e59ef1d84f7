"""Shape, dtype and device checks with the house's error text: what was asked, what came, what to pass.

Read next: `dispatch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def shape_of(tensor: Tensor) -> str:
    """Return a shape as text: (2, 3)."""
    return str(tuple(tensor.shape))


def floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` holds float64, float32, float16 or bfloat16."""
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}; convert it first")


def integers(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` holds integers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {tensor.dtype}; convert it with .long()")


def rank(name: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError unless `tensor` has as many axes as `axes` names, such as "B T H D"."""
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{name} must be ({', '.join(axes.split())}), got {shape_of(tensor)}")


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], why: str) -> None:
    """Raise ValueError unless `tensor` has the expected shape; `why` says where that comes from."""
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


def probability(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def dropout(p: float, seed: object) -> None:
    """Raise ValueError unless p is a probability with a seed where it is above 0, TypeError for another seed."""
    probability("dropout_p", p)
    if p > 0 and seed is None:
        raise ValueError(f"dropout_p={p} needs a seed: pass an integer, another one at every call")
    if isinstance(seed, Tensor):
        if seed.ndim or seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} {shape_of(seed)}")
    elif seed is not None and not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
