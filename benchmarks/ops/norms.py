"""rms_norm and layer_norm, alone and with the residual sum before them.

Bytes, N = R C elements of s bytes: forward reads x (and the residual), writes y (and their sum). Backward reads dy and
x (with a residual: dy, the gradient of the sum, the sum), writes dx (the residual's gradient is the same numbers: a
provider may hand out one tensor for both, so it counts once). Weights are C elements, their gradients too.

Rows are the 65,536 tokens that a large GPU takes at once in the recipes; of 8192, which a GPU passes in a few
microseconds, starting and ending take a third of the time whoever computes.

Read next: `pointwise.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import minillm_kernels as mk
import torch
import torch.nn.functional as F

from benchmarks.ops.registration import (
    Cost,
    Dims,
    OpBenchmark,
    Outputs,
    Run,
    Shape,
    Source,
    Tensors,
    in_tuple,
    liger,
)

SHAPES = {
    "cuda": (
        Shape("GPT-2", {"R": 65536, "C": 768}, {"R": 8192}),
        Shape("small", {"R": 65536, "C": 256}, {"R": 8192}),
        Shape("large", {"R": 8192, "C": 4096}),
        Shape("GPT-2, 8k tokens", {"R": 8192, "C": 768}),
        Shape("medium", {"R": 8192, "C": 2048}),
    ),
    "cpu": (Shape("tiny", {"R": 1024, "C": 256}), Shape("GPT-2", {"R": 2048, "C": 768})),
}


def _inputs(names: tuple[str, ...], dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    """Return inputs whose backward pass has no small term.

    With weight and x of mean 1, and each column of x around its weight, the row means in dx are of the size of dx; with
    independent numbers of mean 0 they are C^-1/2 of it, less than roundings to bfloat16 of the largest.
    """
    R, C = dims["R"], dims["C"]
    tensors = {n: source.normal(*((R, C) if n in ("x", "residual") else (C,)), dtype=dtype) for n in names}
    tensors["weight"] += 1
    tensors["x"] += tensors["weight"]
    return tensors


def _call(op: Any, tensors: Tensors, dims: Dims) -> Outputs:
    return op(**tensors)


def _cost(flops: int, vectors: int, residual: bool, dims: Dims, itemsize: int) -> Cost:
    """Count for `flops` operations an element forward; backward about twice that. vectors: weight, and bias."""
    N, C = dims["R"] * dims["C"], dims["C"]
    passes = 4 if residual else 2
    return Cost(
        forward_bytes=(passes * N + vectors * C) * itemsize,
        forward_flops=flops * N,
        backward_bytes=((4 if residual else 3) * N + (1 + vectors) * C) * itemsize,
        backward_flops=2 * flops * N,
    )


def _liger(name: str, dims: Dims, device: torch.device) -> Run:
    functional = liger(device)
    if name == "rms_norm":
        return lambda t: functional.liger_rms_norm(t["x"], t["weight"], 1e-6, in_place=False)
    return lambda t: functional.liger_layer_norm(t["x"], t["weight"], t["bias"], 1e-5)


def _torch_norm(name: str, dims: Dims, device: torch.device) -> Run:
    C = (dims["C"],)
    if name == "rms_norm":
        return lambda t: F.rms_norm(t["x"], C, t["weight"], 1e-6)
    return lambda t: F.layer_norm(t["x"], C, t["weight"], t["bias"], 1e-5)


def _torch_norm_after_sum(name: str, dims: Dims, device: torch.device) -> Run:
    norm = _torch_norm(name, dims, device)

    def run(t: Tensors) -> Outputs:
        s = t["x"] + t["residual"]
        return *in_tuple(norm({**t, "x": s})), s

    return run


def _benchmark(name: str, flops: int, vectors: tuple[str, ...], residual: bool) -> OpBenchmark:
    names = ("x", *vectors, "residual") if residual else ("x", *vectors)
    peer = functools.partial(_torch_norm_after_sum if residual else _torch_norm, name)
    peers = {f"sum, F.{name}" if residual else f"F.{name}": peer}
    return OpBenchmark(
        name=f"{name}_residual" if residual else name,
        inputs=functools.partial(_inputs, names),
        call=functools.partial(_call, getattr(mk, name)),
        cost=functools.partial(_cost, flops + residual, len(vectors), residual),
        shapes=SHAPES,
        peers=peers if residual else peers | {"Liger": functools.partial(_liger, name)},
    )


NORMS = tuple(
    _benchmark(name, flops, vectors, residual)
    for name, flops, vectors in (("rms_norm", 4, ("weight",)), ("layer_norm", 7, ("weight", "bias")))
    for residual in (False, True)
)
