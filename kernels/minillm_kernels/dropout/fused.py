r"""dropout in Triton: one kernel for both passes, since (1) and (2) of `reference.py` are the same function.

    y_i = x_i / (1 - p) where uniform(seed)_i >= p, else 0                                      (1)
    dx_i = dy_i / (1 - p) where uniform(seed)_i >= p, else 0                                    (2)

The random numbers are drawn again in the backward pass: nothing is kept but the seed.

Read next: `../embedding/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels.dropout import reference
from minillm_kernels.launching import (
    DTYPES,
    TRITON_TYPE,
    cdiv,
    launch,
    make_variant,
    next_power_of_2,
    rows_of,
    with_factor,
)
from minillm_kernels.philox import COLUMNS, seed_on
from minillm_kernels.philox_tiles import kept_tile
from minillm_kernels.tiles import num_tiles
from minillm_kernels.variant import Variant

# Elements of a program: 16 a thread, for two of the random generator's blocks. 65,536 x 3072 take 193.8 us, where 2048
# and 128 threads take 205.4, 2048 and 64 take 199.0, and a copy 192.4 (H200, bfloat16, 2026-11-28, Triton 3.6).
BLOCK = 1024
THREADS = 64


@triton.jit
def _dropout_kernel(
    x_ptr,  # in   (R, C)
    seed_ptr,  # in   () int64
    y_ptr,  # out  (R, C)
    num_rows,  # R
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p))
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 8 at least: that many columns share a block of random numbers
):
    column_tiles = num_tiles(num_cols, BLOCK_C)
    start = tl.program_id(0) % column_tiles * BLOCK_C
    offs_r = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = start + tl.arange(0, BLOCK_C)
    mask = (offs_r < num_rows)[:, None] & (offs_c < num_cols)[None, :]
    offs = offs_r[:, None] * num_cols + offs_c[None, :]  # int64: the index of element 2**31 counts too
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    p, factor = dropout
    kept = kept_tile(tl.load(seed_ptr), offs_r[:, None], start, p, BLOCK_R, BLOCK_C)
    y = tl.where(kept, x * factor, 0.0)  # (1), (2)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


def tile(num_cols: int) -> dict[str, int]:
    """Return the tile of a program: whole rows where they are short."""
    block_c = min(BLOCK, max(COLUMNS, next_power_of_2(num_cols)))
    return {"BLOCK_R": BLOCK // block_c, "BLOCK_C": block_c}


@torch.library.custom_op("minillm_kernels::dropout", mutates_args=())
def _op(x: Tensor, seed: Tensor, p: float) -> Tensor:
    if not dispatch.launches(x):
        y = reference.dropout(x, p, seed)
        return y.contiguous()
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        R, C = rows_of(x).shape
        block = tile(C)
        grid = (cdiv(R, block["BLOCK_R"]) * cdiv(C, block["BLOCK_C"]),)
        launch(_dropout_kernel, grid, x, seed, y, R, C, with_factor(p), **block, threads=THREADS)
    return y


@_op.register_fake
def _(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _op(dy, *ctx.saved_tensors, ctx.p), None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """Return y; arguments as in the public function."""
    return _op(x, seed_on(seed, x.device), p)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernel is compiled, for the shortest rows, for common ones and for wide ones."""
    for warp in (32, 64):
        for dtype in DTYPES:
            types: dict[str, Any] = {"x_ptr": TRITON_TYPE[dtype], "y_ptr": TRITON_TYPE[dtype], "seed_ptr": "*i64"}
            types["dropout"] = ("fp32", "fp32")
            for width in (8, 128, 1024, 2048):
                name = f"{dtype}, C = {width}"
                yield make_variant("dropout", name, _dropout_kernel, types, tile(width), threads=THREADS, warp=warp)
