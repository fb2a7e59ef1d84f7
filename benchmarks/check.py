"""The error of a provider against float64: what decides whether its speed is worth printing.

The rule is that of the kernels' tests: no number further from the float64 truth than twice the reference's largest
distance in the same dtype, plus 4 eps of the largest number, plus 32 eps of float32, which is what the order of a sum
over thousands of rows is worth: peers choose their own. The truth is the reference backend's, which the tests hold
against gradcheck; all get the very same inputs, those of the float64 run being widened.

Read next: `timing.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.ops.registration import Dims, Direction, OpBenchmark, Run, Source, Tensors, in_tuple, leaves_of

SUMMATION = 32 * torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Error:
    """error: largest distance to the truth as a share of the truth's largest number; share: of what is allowed."""

    error: float
    share: float
    where: str

    @property
    def passes(self) -> bool:
        return self.share <= 1  # False for NaN


class Oracle:
    """The truth of one op at one set of sizes and one dtype, and what distance to it is allowed."""

    def __init__(self, benchmark: OpBenchmark, dims: Dims, dtype: torch.dtype, device: torch.device):
        self.benchmark, self.dims = benchmark, dims
        self.eps = torch.finfo(dtype).eps
        self.tensors = benchmark.inputs(dims, dtype, Source(device, seed=1))
        reference = benchmark.provider("reference", dims, device)
        wide = {n: t.double() if t.is_floating_point() else t for n, t in self.tensors.items()}
        self.truth = results(benchmark, reference, wide)
        plain = results(benchmark, reference, self.tensors)
        self.allowed = {
            key: 2 * distance(plain[key], t) + (4 * self.eps + SUMMATION) * largest(t) + TINY
            for key, t in self.truth.items()
        }

    def error(self, run: Run, direction: Direction) -> Error:
        """Return the worst error of a provider, over outputs and, for both passes, gradients."""
        found = results(self.benchmark, run, self.tensors, backward=direction != "forward")
        errors = [self._error(key, t) for key, t in found.items()]
        return max(errors, key=lambda e: (e.share != e.share, e.share))  # NaN is the worst

    def _error(self, key: str, ours: Tensor) -> Error:
        truth = self.truth[key]
        if ours.shape != truth.shape:
            return Error(float("nan"), float("nan"), f"{key} has shape {tuple(ours.shape)}, not {tuple(truth.shape)}")
        far = distance(ours, truth)
        return Error(far / max(largest(truth), TINY), far / self.allowed[key], key)


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def distance(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).abs().max()) if truth.numel() else 0.0


def upstream(outputs: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Return random gradients of the outputs, of 8 significant bits so that all dtypes get the very same."""
    source = Source(device, seed=2)
    return [source.normal(*y.shape, dtype=torch.float32).bfloat16().to(y.dtype) for y in outputs]


def results(benchmark: OpBenchmark, run: Run, tensors: Tensors, *, backward: bool = True) -> Tensors:
    """Return every output by number and, with `backward`, the gradient of every input by its name."""
    device = next(iter(tensors.values())).device
    backward = backward and "forward+backward" in benchmark.directions
    if not backward:
        with torch.no_grad():
            return {f"output {i}": y for i, y in enumerate(in_tuple(run(tensors)))}
    leaves = {n: t.detach().requires_grad_() for n, t in leaves_of(benchmark, tensors).items()}
    outputs = in_tuple(run({**tensors, **leaves}))
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream(outputs, device))
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return found | {f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}
