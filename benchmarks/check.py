"""The error of a provider against float64: what decides whether its speed is worth printing.

Every output and gradient is held against the float64 truth twice; what is too far off in either way is wrong:

    largest             max |ours - truth| <= 2 max |plain - truth| + (4 eps + S) max |truth|
    root mean square    rms(ours - truth)  <= 2 rms(plain - truth)  + (eps + own + S) rms(truth)

plain is the reference in the same dtype, eps is that of this dtype, own that of the result's; S is 32 eps of float32,
which is what the order of a sum over thousands of rows is worth: peers choose their own. The first rule is that of the
kernels' tests and finds a single wrong number. In bfloat16 it allows 3 % of the largest one, and a whole term of a
gradient may be less than that everywhere. The second finds it: roundings, unlike terms, differ from number to number.

Its room is for roundings. The one to the result's dtype comes to 0.2 eps in root mean square; of right providers those
that round in between come to 0.6 eps in 16 bits, 0.3 of what is allowed (all ops on a CPU, 2026-11-27). The rest is
left for a GPU: on an H200 dhidden of both losses over 50,257 classes, PyTorch's and ours, came to 0.6 of what the first
rule allows, which is what adding 16 parts of that product in bfloat16 does, and that is 0.4 by the second. A loss is
one number, in which nothing averages out: in 16 bits it has 2 own more, as much as by the first rule (PyTorch's chunked
one keeps its sum in bfloat16 and came to 3.9 eps). In float32, as this project's, it has only the eps for what was
rounded before.

PyTorch's own layer norm sums its gradients in 16 bits on a CPU, and is wrong by both rules.

The truth is the reference backend's, which the tests hold against gradcheck; all get the very same inputs, those of the
float64 run being widened. A term that those make small is found by neither rule: so logits are spread, a norm's weight
follows its input (`ops/losses.py`, `ops/norms.py`), and the outputs' gradients have a mean (`upstream`).

Read next: `timing.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.ops.registration import Dims, Direction, OpBenchmark, Run, Source, Tensors, in_tuple, leaves_of

SUMMATION = 32 * torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Error:
    """error: largest distance to the truth as a share of the truth's largest number; share: of what is allowed.

    where: the output or gradient. rule: by which the share is largest, in words; "" by the largest distance.
    """

    error: float
    share: float
    where: str
    rule: str = ""

    @property
    def passes(self) -> bool:
        return self.share <= 1  # False for NaN

    @property
    def told(self) -> str:
        """What is wrong, for whoever does not pass."""
        return f"{self.where} is off by {self.share:.3g} times what is allowed{self.rule}"


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
        self.sizes = {key: size(t) for key, t in self.truth.items()}
        self.plain = {key: size(plain[key].double() - t) for key, t in self.truth.items()}

    def error(self, run: Run, direction: Direction) -> Error:
        """Return the worst error of a provider, over outputs and, for both passes, gradients."""
        found = results(self.benchmark, run, self.tensors, backward=direction != "forward")
        return worst(error for key, t in found.items() for error in self._errors(key, t))

    def _errors(self, key: str, ours: Tensor) -> Iterator[Error]:
        """Yield the error by each of the two rules."""
        truth = self.truth[key]
        if ours.shape != truth.shape:
            yield Error(float("nan"), float("nan"), f"{key} has shape {tuple(ours.shape)}, not {tuple(truth.shape)}")
            return
        off, of, plain = size(ours.double() - truth), self.sizes[key], self.plain[key]
        own = torch.finfo(ours.dtype).eps * (3 if ours.ndim == 0 else 1)  # one number: its roundings do not average out
        error = off.largest / max(of.largest, TINY)
        largest = 2 * plain.largest + (4 * self.eps + SUMMATION) * of.largest + TINY
        rms = 2 * plain.rms + (self.eps + own + SUMMATION) * of.rms + TINY
        yield Error(error, off.largest / largest, key)
        yield Error(error, off.rms / rms, key, " in root mean square")


@dataclass(frozen=True)
class Size:
    """How large the numbers of a tensor are: the largest, and the root of their mean square."""

    largest: float
    rms: float


def size(tensor: Tensor) -> Size:
    """Return how large a tensor's numbers are; one without numbers has none that is off."""
    if not tensor.numel():
        return Size(0.0, 0.0)
    return Size(float(tensor.abs().max()), float(torch.linalg.vector_norm(tensor)) / tensor.numel() ** 0.5)


def worst(errors: Iterable[Error]) -> Error:
    return max(errors, key=lambda e: (e.share != e.share, e.share))  # NaN is the worst


def upstream(outputs: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Return random gradients of the outputs, of 8 significant bits so that all dtypes get the very same.

    Their mean is 1: of mean 0 the mean that a norm takes over C of them would be C^-1/2, and could be forgotten.
    """
    source = Source(device, seed=2)
    return [(1 + source.normal(*y.shape, dtype=torch.float32)).bfloat16().to(y.dtype) for y in outputs]


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
