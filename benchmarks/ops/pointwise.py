"""relu, gelu, relu2, swiglu, geglu, dropout: ops on single elements, bound by memory.

Bytes, N elements of s bytes: forward reads each input and writes the result; backward reads dy and the inputs again and
writes their gradients. Dropout's backward needs dy only, and dropout after an activation costs no byte: which element
fell is computed anew from the seed. A bias is C elements.

Read next: `tables.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import minillm_kernels as mk
import torch
import torch.nn.functional as F

from benchmarks.ops.registration import Cost, Dims, OpBenchmark, Run, Shape, Source, Tensors, liger, plain

SHAPES = {
    "cuda": (
        Shape("GPT-2", {"R": 65536, "C": 3072}, {"R": 8192}),
        Shape("large", {"R": 8192, "C": 14336}),
        Shape("small", {"R": 65536, "C": 1024}, {"R": 8192}),
    ),
    "cpu": (Shape("tiny", {"R": 512, "C": 1024}), Shape("GPT-2", {"R": 1024, "C": 3072})),
}
DROPOUT_P, SEED = 0.1, 7


def _inputs(names: tuple[str, ...], dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    R, C = dims["R"], dims["C"]
    return {n: source.normal(*((C,) if n == "bias" else (R, C)), dtype=dtype) for n in names}


def _cost(names: tuple[str, ...], flops: int, reads_inputs: bool, dims: Dims, itemsize: int) -> Cost:
    N, vectors = dims["R"] * dims["C"], names.count("bias") * dims["C"]
    num_inputs = len(names) - names.count("bias")
    return Cost(
        forward_bytes=((num_inputs + 1) * N + vectors) * itemsize,
        forward_flops=flops * N,
        backward_bytes=((1 + num_inputs * (1 + reads_inputs)) * N + 2 * vectors) * itemsize,
        backward_flops=2 * flops * N,
    )


def _liger(dims: Dims, device: torch.device) -> Run:
    return plain(liger(device).liger_swiglu, "gate", "up")(dims, device)


def _benchmark(name: str, flops: int, names: tuple[str, ...], call: Callable[..., Any], **more: Any) -> OpBenchmark:
    return OpBenchmark(
        name=name,
        inputs=functools.partial(_inputs, names),
        call=lambda tensors, dims: call(**tensors),
        cost=functools.partial(_cost, names, flops, name != "dropout"),
        shapes=SHAPES,
        **more,
    )


def _gated(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Dims, torch.device], Run]:
    return lambda dims, device: lambda t: activation(t["gate"]) * t["up"]


def _dropped(run: Callable[[Tensors], torch.Tensor]) -> Callable[[Dims, torch.device], Run]:
    return lambda dims, device: lambda t: F.dropout(run(t), DROPOUT_P)


GATED = ("gate", "up")
DROPS = {"dropout_p": DROPOUT_P, "seed": SEED}
POINTWISE = (
    _benchmark("relu", 1, ("x",), mk.relu, peers={"F.relu": plain(F.relu, "x")}),
    _benchmark("gelu", 15, ("x",), mk.gelu, peers={"F.gelu": plain(F.gelu, "x")}),
    _benchmark(
        "gelu_tanh",
        15,
        ("x",),
        functools.partial(mk.gelu, approximate="tanh"),
        peers={"F.gelu": plain(F.gelu, "x", approximate="tanh")},
    ),
    _benchmark("relu2", 2, ("x",), mk.relu2, peers={"F.relu, square": plain(lambda x: F.relu(x).square(), "x")}),
    _benchmark(
        "swiglu",
        6,
        GATED,
        mk.swiglu,
        peers={"F.silu, product": _gated(F.silu), "Liger": _liger},
    ),
    _benchmark("geglu", 16, GATED, mk.geglu, peers={"F.gelu, product": _gated(F.gelu)}),  # Liger's is the tanh form
    _benchmark(
        "dropout",
        2,
        ("x",),
        functools.partial(mk.dropout, p=DROPOUT_P, seed=SEED),
        peers={"F.dropout": plain(F.dropout, "x", p=DROPOUT_P)},
        unchecked=frozenset({"F.dropout"}),  # other random numbers
    ),
    _benchmark(
        "gelu_bias_dropout",
        15 + 1 + 2,
        ("x", "bias"),
        functools.partial(mk.gelu, **DROPS),
        peers={"F.gelu, F.dropout": _dropped(lambda t: F.gelu(t["x"] + t["bias"]))},
        unchecked=frozenset({"F.gelu, F.dropout"}),
    ),
    _benchmark(
        "swiglu_dropout",
        6 + 2,
        GATED,
        functools.partial(mk.swiglu, **DROPS),
        peers={"F.silu, product, F.dropout": _dropped(lambda t: F.silu(t["gate"]) * t["up"])},
        unchecked=frozenset({"F.silu, product, F.dropout"}),
    ),
)
