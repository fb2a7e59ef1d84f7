"""The second stage of a gradient that is a sum over rows: adds the partial sums of programs, without atomics.

    total[n, c] = sum over p of partial[n, p, c],     p = 0 .. P-1, in the same order every time                 (1)

The first stage is the kernel that calls for it: each of its P programs walks down its own rows and writes one row of
partial sums. One launch casts too, and serves the two sums of a norm with a bias.

Read next: `row_norm.py`, which launches both stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels.launching import TRITON_TYPE, cdiv, launch, make_variant
from minillm_kernels.variant import Variant

# 16 elements a thread, all asked for at once: a step of the loop is a wait for the cache. 64 at a time of a norm's 396
# and gelu's 88 partial sums took 3.7 us (an H200, 2026-11-28); a norm has up to 792 now. Not measured since.
TILE = {"BLOCK_P": 256, "BLOCK_C": 32}
THREADS = 512


@triton.jit
def _column_sums_kernel(
    partial_ptr,  # in   (sums, P, C) float32
    first_ptr,  # out  (C,)
    second_ptr,  # out  (C,); None: there is one sum
    num_programs,  # P
    num_cols,  # C
    BLOCK_P: tl.constexpr,  # programs whose sums are added at a time
    BLOCK_C: tl.constexpr,
):
    which = tl.program_id(1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_cols
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    partial_ptr += which.to(tl.int64) * num_programs * num_cols
    for start in range(0, num_programs, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P)
        mask = (offs_p < num_programs)[:, None] & mask_c[None, :]
        sums += tl.load(partial_ptr + offs_p.to(tl.int64)[:, None] * num_cols + offs_c[None, :], mask=mask, other=0.0)
    total = tl.sum(sums, axis=0)  # (1)
    if second_ptr is None:
        tl.store(first_ptr + offs_c, total.to(first_ptr.dtype.element_ty), mask=mask_c)
    else:
        tl.store(first_ptr + offs_c, total.to(first_ptr.dtype.element_ty), mask=mask_c & (which == 0))
        tl.store(second_ptr + offs_c, total.to(second_ptr.dtype.element_ty), mask=mask_c & (which == 1))


def add_up(partial: Tensor, first: Tensor, second: Tensor | None = None) -> None:
    """Write the totals (1) of partial (1 or 2, P, C) float32 into `first` and, of two, `second`: (C,) each."""
    sums, P, C = partial.shape
    launch(
        _column_sums_kernel,
        (cdiv(C, TILE["BLOCK_C"]), sums),
        *(partial, first, second),
        P,
        C,
        **TILE,
        threads=THREADS,
    )


def variants(op: str, second: bool, warp: int) -> Iterator[Variant]:
    """Yield how `op` has its sums added up, into float32: one of them and, with `second`, two."""
    types: dict[str, Any] = dict.fromkeys(("partial_ptr", "first_ptr", "second_ptr"), TRITON_TYPE[torch.float32])
    for name, none in (("", {"second_ptr": None}), (" with a bias", {}))[: 1 + second]:
        full = f"backward, partial sums{name}"
        yield make_variant(op, full, _column_sums_kernel, types, {**TILE, **none}, threads=THREADS, warp=warp)
