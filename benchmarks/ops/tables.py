"""rotary and embedding: ops that read rows of a table.

Rotary, N elements of q and k: forward and backward both read and write N, and T rows of the two tables, which are
float32 beside any dtype. Embedding, N tokens of 8 bytes: forward reads and writes N rows (a row that comes twice is
read twice, as a cache may not hold it); backward reads N rows of dy and writes all V rows of the gradient.

Read next: `attention.py`.
"""

from __future__ import annotations

import minillm_kernels as mk
import torch
import torch.nn.functional as F

from benchmarks.ops.registration import Cost, Dims, OpBenchmark, Shape, Source, Tensors, plain


def _rotary_inputs(dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    B, T, H, Hkv, D = (dims[n] for n in ("B", "T", "H", "Hkv", "D"))
    positions = torch.arange(T, device=source.device, dtype=torch.float64)
    rates = 10_000.0 ** (-torch.arange(0, D, 2, device=source.device, dtype=torch.float64) / D)
    angles = positions[:, None] * rates  # (T, D/2)
    return {
        "q": source.normal(B, T, H, D, dtype=dtype),
        "k": source.normal(B, T, Hkv, D, dtype=dtype),
        "cos": angles.cos().float(),
        "sin": angles.sin().float(),
    }


def _rotary_cost(dims: Dims, itemsize: int) -> Cost:
    N = dims["B"] * dims["T"] * (dims["H"] + dims["Hkv"]) * dims["D"]
    one_way = 2 * N * itemsize + 4 * dims["T"] * dims["D"]  # 2 tables x T rows x D/2 columns x 4 bytes
    return Cost(forward_bytes=one_way, forward_flops=3 * N, backward_bytes=one_way, backward_flops=3 * N)


def _embedding_inputs(dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    return {
        "tokens": source.integers(dims["V"], dims["N"]),
        "weight": source.normal(dims["V"], dims["C"], dtype=dtype),
    }


def _embedding_cost(dims: Dims, itemsize: int) -> Cost:
    rows = dims["N"] * dims["C"] * itemsize
    return Cost(
        forward_bytes=2 * rows + 8 * dims["N"],
        forward_flops=0,
        backward_bytes=rows + dims["V"] * dims["C"] * itemsize + 8 * dims["N"],
        backward_flops=dims["N"] * dims["C"],
    )


TABLES = (
    OpBenchmark(
        name="rotary",
        inputs=_rotary_inputs,
        call=lambda t, dims: mk.rotary(t["q"], t["k"], t["cos"], t["sin"]),
        cost=_rotary_cost,
        shapes={
            "cuda": (
                Shape("GPT-2", {"B": 8, "T": 1024, "H": 12, "Hkv": 12, "D": 64}),
                Shape("large", {"B": 4, "T": 4096, "H": 32, "Hkv": 8, "D": 128}),
            ),
            "cpu": (Shape("tiny", {"B": 8, "T": 128, "H": 4, "Hkv": 4, "D": 32}),),
        },
        fixed=frozenset({"cos", "sin"}),
    ),
    OpBenchmark(
        name="embedding",
        inputs=_embedding_inputs,
        call=lambda t, dims: mk.embedding(t["tokens"], t["weight"]),
        cost=_embedding_cost,
        shapes={
            "cuda": (
                Shape("GPT-2", {"N": 8192, "V": 50257, "C": 768}),
                Shape("large", {"N": 16384, "V": 32000, "C": 4096}),
            ),
            "cpu": (Shape("tiny", {"N": 1024, "V": 2048, "C": 256}),),
        },
        peers={"F.embedding": plain(F.embedding, "tokens", "weight")},
    ),
)
