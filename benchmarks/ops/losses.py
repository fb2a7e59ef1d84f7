"""cross_entropy and linear_cross_entropy.

Cross-entropy, R rows of V logits: forward reads them; backward reads them again and writes their gradient. Targets are
8 bytes a row, twice. The linear one: three products of 2 R V C operations, one forward and two for the gradients; bytes
are those of hidden, weight and their gradients, as the logits need not exist. No row is ignored: the sparse targets of
masked LM are a shape of its own, with fewer rows.

Liger's cross-entropy writes its gradient over the logits, which the other providers still need: it is left out.

Read next: `../check.py`.
"""

from __future__ import annotations

import functools

import minillm_kernels as mk
import torch
import torch.nn.functional as F

from benchmarks.ops.registration import Cost, Dims, OpBenchmark, Run, Shape, Source, Tensors, Unavailable, liger, plain

# Standard deviation of the logits. At 1 none of 50,257 classes has a thousandth of the softmax, and its part of the
# gradient is less than what the target's may be off by; at 3 the largest has a tenth. At 6 peers that round logits to
# bfloat16 would have a softmax that is off by up to 6 %.
SPREAD = 3.0


def _logits(dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    R, V = dims["R"], dims["V"]
    return {"logits": SPREAD * source.normal(R, V, dtype=dtype), "targets": source.integers(V, R)}


def _cross_entropy_cost(dims: Dims, itemsize: int) -> Cost:
    R, V = dims["R"], dims["V"]
    return Cost(
        forward_bytes=R * V * itemsize + 8 * R,
        forward_flops=5 * R * V,
        backward_bytes=2 * R * V * itemsize + 8 * R,
        backward_flops=5 * R * V,
    )


def _hidden(dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    R, C, V = dims["R"], dims["C"], dims["V"]
    return {
        "hidden": source.normal(R, C, dtype=dtype),
        "weight": source.normal(V, C, dtype=dtype) * (SPREAD * C**-0.5),
        "targets": source.integers(V, R),
    }


def _linear_cost(dims: Dims, itemsize: int) -> Cost:
    R, C, V = dims["R"], dims["C"], dims["V"]
    tensors = (R * C + V * C) * itemsize
    return Cost(
        forward_bytes=tensors + 8 * R,
        forward_flops=2 * R * V * C,
        backward_bytes=2 * tensors + 8 * R,
        backward_flops=4 * R * V * C,
        unit="matrix",
    )


def _with_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def _torch_linear(chunks: bool, dims: Dims, device: torch.device) -> Run:
    """Return PyTorch's own, as it is or with chunks over the rows, where this PyTorch has it."""
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable(f"PyTorch {torch.__version__} has no F.linear_cross_entropy")
    if not chunks:
        return plain(function, "hidden", "weight", "targets")(dims, device)
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None) or getattr(F, "LinearCrossEntropyOptions", None)
    if options is None:
        raise Unavailable(f"PyTorch {torch.__version__} has no LinearCrossEntropyOptions")
    return plain(function, "hidden", "weight", "targets", options=options())(dims, device)


def _liger(dims: Dims, device: torch.device) -> Run:
    return plain(liger(device).liger_fused_linear_cross_entropy, "hidden", "weight", "targets")(dims, device)


LOSSES = (
    OpBenchmark(
        name="cross_entropy",
        inputs=_logits,
        call=lambda t, dims: mk.cross_entropy(t["logits"], t["targets"], reduction="mean"),
        cost=_cross_entropy_cost,
        shapes={
            "cuda": (
                Shape("GPT-2", {"R": 8192, "V": 50257}, {"R": 1024}),
                Shape("32k", {"R": 8192, "V": 32000}, {"R": 1024}),
                Shape("128k", {"R": 4096, "V": 128256}, {"R": 512}),
            ),
            "cpu": (Shape("tiny", {"R": 512, "V": 2048}), Shape("32k", {"R": 128, "V": 32000})),
        },
        peers={"F.cross_entropy": plain(F.cross_entropy, "logits", "targets")},
    ),
    OpBenchmark(
        name="linear_cross_entropy",
        inputs=_hidden,
        call=lambda t, dims: mk.linear_cross_entropy(
            t["hidden"], t["weight"], t["targets"], reduction="mean", num_targets=dims["R"]
        ),
        cost=_linear_cost,
        shapes={
            "cuda": (
                Shape("GPT-2", {"R": 8192, "C": 768, "V": 50257}, {"R": 1024}),
                Shape("masked LM", {"R": 2458, "C": 768, "V": 30522}, {"R": 1024}),
                Shape("large", {"R": 8192, "C": 4096, "V": 32000}, {"R": 512}),
            ),
            "cpu": (Shape("tiny", {"R": 512, "C": 256, "V": 2048}), Shape("32k", {"R": 128, "C": 768, "V": 32000})),
        },
        peers={
            "F.linear, F.cross_entropy": plain(_with_logits, "hidden", "weight", "targets"),
            "F.linear_cross_entropy": functools.partial(_torch_linear, False),
            "F.linear_cross_entropy, chunked": functools.partial(_torch_linear, True),
            "Liger": _liger,
        },
        graph=False,  # Liger's waits for the number of rows that are not ignored
    ),
)
