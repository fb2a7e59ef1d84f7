r"""Kernels for every element-wise non-linearity: written once, with the function itself as a compile-time parameter.

Two skeletons, forward and backward each. f is the op's own, two functions under `triton.jit` in its `fused.py`:

    unary:  h = x + bias,  y = drop(f(h))                                                        (1)
            dx = dh = drop(dy) * f'(h),   dbias = sum over rows of dh                            (2)
    gated:  y = drop(f(gate) * up)                                                               (3)
            dgate = drop(dy) * up * f'(gate),   dup = drop(dy) * f(gate)                         (4)
    drop(t) = t / (1 - p) where uniform(seed)_i >= p, else 0;  without a seed: t                 (5)

All is bound by memory, so each tensor is moved once: the backward pass recomputes h from x instead of keeping it, draws
the random numbers of (5) again instead of keeping a mask, and sums dbias while dh is in registers. The sum has two
stages: each program walks down its own row tiles with one accumulator and writes one row of partial sums, then
`column_sums.py` adds those rows: the same input gives the same bits.

Read next: `elementwise.py`, the launchers; then `relu/fused.py` and `gelu/fused.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm_kernels.philox_tiles import kept_tile
from minillm_kernels.tiles import num_tiles

NAN_STAYS = tl.constexpr(tl.PropagateNan.ALL)  # in a maximum or minimum, which else is the other operand


@triton.jit
def logistic(w):
    """Return sigma(z) = 1 / (1 + exp(-z)) and 1 - sigma(z), each with all its digits, of w = -z * LOG2E.

    Below z = -87.3 sigma is less than a normal number, and both are 0: what is asked for is its product with 1 - sigma.
    """
    e = tl.exp2(tl.minimum(w, 126.0, propagate_nan=NAN_STAYS))  # no inf, of which a product with 0 would be NaN
    root = tl.rsqrt(1 + e)  # its square is two instructions; the division that Triton emits is eight
    sigma = tl.where(w > 126.0, 0.0, root * root)
    return sigma, e * sigma


@triton.jit
def _row_tile(num_cols, BLOCK_C: tl.constexpr):
    """Return which row tile this program begins with; the column tiles of one row tile are neighbours."""
    return tl.program_id(0) // num_tiles(num_cols, BLOCK_C)


@triton.jit
def _first_column(num_cols, BLOCK_C: tl.constexpr):
    """Return the first column of this program, int64."""
    return (tl.program_id(0) % num_tiles(num_cols, BLOCK_C)).to(tl.int64) * BLOCK_C


@triton.jit
def _drop(t, seed_ptr, offs_r, start, dropout, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return (5) of a tile of rows `offs_r` and columns `start` and on."""
    if seed_ptr is not None:
        p, factor = dropout
        kept = kept_tile(tl.load(seed_ptr), offs_r[:, None], start, p, BLOCK_R, BLOCK_C)
        t = tl.where(kept, t * factor, 0.0)
    return t


@triton.jit
def _unary_forward_kernel(
    x_ptr,  # in   (R, C)
    bias_ptr,  # in   (C,), with HAS_BIAS
    seed_ptr,  # in   () int64; None without dropout
    y_ptr,  # out  (R, C), contiguous
    x_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    VALUE: tl.constexpr,  # f
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 8 at least: that many columns share a block of random numbers
):
    start = _first_column(num_cols, BLOCK_C)
    offs_c = start + tl.arange(0, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_c = offs_c < num_cols
    mask = (offs_r < num_rows)[:, None] & mask_c[None, :]
    h = tl.load(x_ptr + offs_r[:, None] * x_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        h += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    y = _drop(VALUE(h), seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C)  # (1)
    tl.store(y_ptr + offs_r[:, None] * num_cols + offs_c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _unary_backward_kernel(
    dy_ptr,  # in   (R, C)
    x_ptr,  # in   (R, C)
    bias_ptr,  # in   (C,), with HAS_BIAS
    seed_ptr,  # in   () int64; None without dropout
    dx_ptr,  # out  (R, C), contiguous
    partial_ptr,  # out  (row_programs, C) float32, with HAS_BIAS: one row of the sum (2) per program
    dy_row_stride,  # in elements
    x_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    row_programs,  # programs that share the row tiles of one column tile
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    GRADIENT: tl.constexpr,  # dy * f'(h)
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 8 at least: that many columns share a block of random numbers
    STAGES: tl.constexpr,  # 1: load, then work; more: row tiles at work and on their way
):
    row_program, start = _row_tile(num_cols, BLOCK_C), _first_column(num_cols, BLOCK_C)
    offs_c = start + tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_cols
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # rows are added at the end: there they cross warps
    for row_tile in tl.range(row_program, num_tiles(num_rows, BLOCK_R), row_programs, num_stages=STAGES):
        offs_r = tl.cast(row_tile, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (offs_r < num_rows)[:, None] & mask_c[None, :]
        dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        h = tl.load(x_ptr + offs_r[:, None] * x_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            h += bias[None, :]
        dy = _drop(dy, seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C)  # (5)
        dh = GRADIENT(h, dy)  # (2); 0 outside of the tensor, where dy is
        if HAS_BIAS:
            dbias += dh
        tl.store(dx_ptr + offs_r[:, None] * num_cols + offs_c[None, :], dh.to(dx_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        partial = partial_ptr + tl.cast(row_program, tl.int64) * num_cols + offs_c
        tl.store(partial, tl.sum(dbias, axis=0), mask=mask_c)


@triton.jit
def _gated_forward_kernel(
    gate_ptr,  # in   (R, C)
    up_ptr,  # in   (R, C)
    seed_ptr,  # in   () int64; None without dropout
    y_ptr,  # out  (R, C), contiguous
    gate_row_stride,  # in elements
    up_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    VALUE: tl.constexpr,  # f
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 8 at least: that many columns share a block of random numbers
):
    start = _first_column(num_cols, BLOCK_C)
    offs_c = start + tl.arange(0, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (offs_r < num_rows)[:, None] & (offs_c < num_cols)[None, :]
    gate = tl.load(gate_ptr + offs_r[:, None] * gate_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + offs_r[:, None] * up_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    y = _drop(VALUE(gate) * up, seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C)  # (3)
    tl.store(y_ptr + offs_r[:, None] * num_cols + offs_c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_backward_kernel(
    dy_ptr,  # in   (R, C)
    gate_ptr,  # in   (R, C)
    up_ptr,  # in   (R, C)
    seed_ptr,  # in   () int64; None without dropout
    dgate_ptr,  # out  (R, C), contiguous
    dup_ptr,  # out  (R, C), contiguous
    dy_row_stride,  # in elements
    gate_row_stride,  # in elements
    up_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    VALUE: tl.constexpr,  # f
    GRADIENT: tl.constexpr,  # dy * f'(gate)
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 8 at least: that many columns share a block of random numbers
):
    start = _first_column(num_cols, BLOCK_C)
    offs_c = start + tl.arange(0, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (offs_r < num_rows)[:, None] & (offs_c < num_cols)[None, :]
    dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + offs_r[:, None] * gate_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + offs_r[:, None] * up_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    dy = _drop(dy, seed_ptr, offs_r, start, dropout, BLOCK_R, BLOCK_C)  # (5)
    offs = offs_r[:, None] * num_cols + offs_c[None, :]
    tl.store(dgate_ptr + offs, GRADIENT(gate, dy * up).to(dgate_ptr.dtype.element_ty), mask=mask)  # (4)
    tl.store(dup_ptr + offs, (dy * VALUE(gate)).to(dup_ptr.dtype.element_ty), mask=mask)  # (4)
