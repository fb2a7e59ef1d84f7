"""What one op tells the benchmark: inputs, counts, shapes, providers.

A provider computes the op in its own way: this project's backends, torch.compile of the `torch` backend, and peers from
elsewhere. Counts are of the task and not of a provider: bytes that must be read and written at least once, operations
that the formula has. So all providers of a case are held against the same ceiling.

Read next: `norms.py`, the simplest registrations.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import minillm_kernels as mk
import torch
from minillm_kernels.dispatch import Backend
from torch import Tensor

from benchmarks.figures import COPY

Dims = Mapping[str, int]
Tensors = dict[str, Tensor]
Outputs = Tensor | tuple[Tensor, ...]
Run = Callable[[Tensors], Outputs]
Unit = Literal["vector", "matrix"]
Direction = Literal["forward", "forward+backward"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class Unavailable(Exception):
    """A provider that cannot serve a case here; the text is the reason, for the report."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the task needs at least: bytes moved and floating-point operations of each pass, and who does those."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int
    unit: Unit = "vector"

    def of(self, direction: Direction) -> tuple[int, int]:
        """Return bytes and operations of one direction; nothing is kept in a cache between the two passes."""
        both = direction == "forward+backward"
        return (
            self.forward_bytes + self.backward_bytes * both,
            self.forward_flops + self.backward_flops * both,
        )


@dataclass(frozen=True)
class Shape:
    """One set of sizes.

    check: sizes that the check against float64 takes in their place, where those would be too large for it.
    """

    name: str
    dims: Dims
    check: Dims = field(default_factory=dict)


class Source:
    """Random data on a device, the same for every provider: zeros would let clocks rise that real data does not."""

    def __init__(self, device: torch.device, seed: int = 0):
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator, device=self.device)


@dataclass(frozen=True, kw_only=True)
class OpBenchmark:
    """One op under measurement.

    inputs: sizes, dtype, source -> tensors by name.
    call: the public op with the options of the case; the backend is chosen around it.
    cost: sizes, bytes of an element -> the counts.
    shapes: by kind of device, the most telling first: what a time budget cuts off is the end.
    peers: name -> sizes, device -> a function of the tensors; raises `Unavailable`.
    unchecked: peers whose result is right and yet another one, such as other random numbers; no speed-up is printed.
    fixed: floating inputs that have no gradient.
    graph: whether providers can be captured; one that waits for the device cannot, and then all are timed by events.
    """

    name: str
    inputs: Callable[[Dims, torch.dtype, Source], Tensors]
    call: Callable[[Tensors, Dims], Outputs]
    cost: Callable[[Dims, int], Cost]
    shapes: Mapping[str, tuple[Shape, ...]]
    peers: Mapping[str, Callable[[Dims, torch.device], Run]] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    directions: tuple[Direction, ...] = DIRECTIONS
    graph: bool = True

    def providers(self) -> tuple[str, ...]:
        """Return the names of all that compute the op."""
        return ("fused", "torch", "torch.compile", "reference", *self.peers)

    def timed(self) -> tuple[str, ...]:
        """Return the providers, and COPY where memory bounds the op."""
        dims = next(iter(self.shapes.values()))[0].dims
        return (*self.providers(), COPY) if self.cost(dims, 2).unit == "vector" else self.providers()

    def provider(self, name: str, dims: Dims, device: torch.device) -> Run:
        """Return how a provider computes the op.

        Raises:
            Unavailable: it cannot do so here, with the reason.
        """
        match name:
            case "fused" if device.type != "cuda":
                raise Unavailable("Triton's interpreter is for checking, it is never timed")
            case "torch" if device.type == "cpu":
                return lambda tensors: self.call(tensors, dims)  # the default: asking for it takes 0.01 ms a call
            case "fused" | "torch" | "reference":
                return functools.partial(self._with_backend, name, lambda tensors: self.call(tensors, dims))
            case "torch.compile":
                # The whole graph or an exception: a silent return to eager would be timed as compiled.
                compiled = torch.compile(lambda tensors: self.call(tensors, dims), dynamic=False, fullgraph=True)
                return functools.partial(self._with_backend, "torch", compiled)
        return self.peers[name](dims, device)

    @staticmethod
    def _with_backend(backend: Backend, run: Run, tensors: Tensors) -> Outputs:
        with mk.backend(backend):
            return run(tensors)


def leaves_of(benchmark: OpBenchmark, tensors: Tensors) -> Tensors:
    """Return the inputs that get a gradient."""
    return {n: t for n, t in tensors.items() if t.is_floating_point() and n not in benchmark.fixed}


def in_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def liger(device: torch.device) -> Any:
    """Return the module with Liger-Kernel's functions.

    Raises:
        Unavailable: it is not installed, or there is no GPU, which it needs.
    """
    if device.type != "cuda":
        raise Unavailable("needs a GPU")
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unavailable("Liger-Kernel is not installed")
    return importlib.import_module("liger_kernel.transformers.functional")


def plain(function: Callable[..., Outputs], *names: str, **options: Any) -> Callable[[Dims, torch.device], Run]:
    """Return a peer that calls one function with the named inputs, on every device and for all sizes."""
    return lambda dims, device: lambda tensors: function(*(tensors[n] for n in names), **options)
