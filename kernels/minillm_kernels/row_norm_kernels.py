r"""Kernels of rms_norm and layer_norm, which differ by a mean (CENTRE): whole rows in registers, wide rows in a loop.

Names and equations are those of `layer_norm/reference.py`; with CENTRE off the mean is 0, and what remains is
`rms_norm/reference.py`:

    s = keep * x / (1 - p) + residual                                                            (1)
    mean = mean_k(s_k)                                                                           (2)  CENTRE
    rstd = (mean_c((s_c - mean)^2) + eps)^(-1/2)                                                 (3)
    x_hat = (s - mean) * rstd,   y = x_hat * w + bias                                            (4)
    g = dy * w,   through y: rstd * (g - mean_k(g_k) - x_hat * mean_k(g_k * x_hat_k))            (7)  mean(g): CENTRE
    total = (7) + ds,   dx = keep * total / (1 - p),   dresidual = total                         (8), (9)
    dw = sum over rows of dy * x_hat,   dbias = sum over rows of dy                              (10)

What a call does not have is None, a constant to the compiler, and what it takes is not compiled.

keep is recomputed in the backward pass from the seed and each element's place, so that no mask is stored; s and the
statistics are. The sums (10) have two stages: each program walks down its own row tiles with accumulators in registers
and writes one row of partial sums, then `column_sums.py` adds those rows: the same input gives the same bits.

Read next: `tiles.py` and `column_sums.py`, then `row_norm.py`, the launchers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm_kernels.philox_tiles import kept_row, kept_tile
from minillm_kernels.tiles import num_tiles


@triton.jit
def _drop(x, kept, dropout):
    """Return x / (1 - p) where kept, else 0."""
    _, factor = dropout
    return tl.where(kept, x * factor, 0.0)


@triton.jit
def _kept_tile(seed_ptr, rows, mask, dropout, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return which elements of whole rows stay, (BLOCK_R, BLOCK_C); without dropout the mask."""
    if seed_ptr is not None:
        mask = kept_tile(tl.load(seed_ptr), rows, 0, dropout[0], BLOCK_R, BLOCK_C)
    return mask


@triton.jit
def _kept_part(seed_ptr, row, start, mask, dropout, BLOCK_C: tl.constexpr):
    """Return which elements of a part of one row stay, (BLOCK_C,); without dropout the mask."""
    if seed_ptr is not None:
        mask = kept_row(tl.load(seed_ptr), row, start, dropout[0], BLOCK_C)
    return mask


@triton.jit
def _sum(
    x_ptr,
    residual_ptr,
    seed_ptr,
    x_offs,
    residual_offs,
    mask,
    kept,
    dropout,
):
    """Return s of (1), rounded to the dtype of x, in float32; 0 where masked."""
    s = tl.load(x_ptr + x_offs, mask=mask, other=0.0).to(tl.float32)
    if seed_ptr is not None:
        s = _drop(s, kept, dropout)
    if residual_ptr is not None:
        s += tl.load(residual_ptr + residual_offs, mask=mask, other=0.0).to(tl.float32)
    return s.to(x_ptr.dtype.element_ty).to(tl.float32)  # y is the norm of the s that is returned


@triton.jit
def _row_norm_forward_kernel(
    x_ptr,  # in   (R, C)
    residual_ptr,  # in   (R, C); None without a residual
    weight_ptr,  # in   (C,)
    bias_ptr,  # in   (C,); None without a bias
    seed_ptr,  # in   () int64; None without dropout
    y_ptr,  # out  (R, C), contiguous
    s_ptr,  # out  (R, C), contiguous, where there is a residual or dropout
    mean_ptr,  # out  (R,) float32, with CENTRE
    rstd_ptr,  # out  (R,) float32
    row_strides,  # of x and residual, in elements
    num_rows,  # R
    num_cols,  # C
    eps,
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    CENTRE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # power of two >= C: one program owns BLOCK_R whole rows
):
    x_row_stride, residual_row_stride = row_strides
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # int64: row * stride can pass 2**31
    offs_c = tl.arange(0, BLOCK_C)
    mask_r, mask_c = offs_r < num_rows, offs_c < num_cols
    mask = mask_r[:, None] & mask_c[None, :]
    offs = offs_r[:, None] * num_cols + offs_c[None, :]
    x_offs = offs_r[:, None] * x_row_stride + offs_c[None, :]
    residual_offs = offs_r[:, None] * residual_row_stride + offs_c[None, :]
    kept = _kept_tile(seed_ptr, offs_r[:, None], mask, dropout, BLOCK_R, BLOCK_C)
    s = _sum(x_ptr, residual_ptr, seed_ptr, x_offs, residual_offs, mask, kept, dropout)  # (BLOCK_R, BLOCK_C)
    if residual_ptr is not None or seed_ptr is not None:
        tl.store(s_ptr + offs, s.to(s_ptr.dtype.element_ty), mask=mask)
    if CENTRE:
        mean = tl.sum(s, axis=1) / num_cols  # (2)
        tl.store(mean_ptr + offs_r, mean, mask=mask_r)
        s = tl.where(mask_c[None, :], s - mean[:, None], 0.0)  # padding adds nothing to the sum of squares
    square = tl.sum(s * s, axis=1) / num_cols + eps
    rstd = 1.0 / tl.sqrt(tl.where(mask_r, square, 1.0))  # (3); no division by 0 below the last row
    tl.store(rstd_ptr + offs_r, rstd, mask=mask_r)
    y = s * rstd[:, None] * tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]  # (4)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _row_norm_backward_kernel(
    dy_ptr,  # in   (R, C)
    ds_ptr,  # in   (R, C); None where nobody used s
    s_ptr,  # in   (R, C)
    weight_ptr,  # in   (C,)
    mean_ptr,  # in   (R,) float32, with CENTRE
    rstd_ptr,  # in   (R,) float32
    seed_ptr,  # in   () int64; None without dropout
    dx_ptr,  # out  (R, C), contiguous
    dresidual_ptr,  # out  (R, C), contiguous, where there is dropout: else it is dx
    dweight_ptr,  # out  (programs, C) float32, one row of (10) per program
    dbias_ptr,  # out  (programs, C) float32; None without a bias
    row_strides,  # of dy, ds and s, in elements
    num_rows,  # R
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    CENTRE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # power of two >= C
    STAGES: tl.constexpr,  # 1: load, then work; more: row tiles at work and on their way
):
    dy_row_stride, ds_row_stride, s_row_stride = row_strides
    program = tl.program_id(0)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_cols
    weight = tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # rows are added at the end: there they cross warps
    dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row_tile in tl.range(program, num_tiles(num_rows, BLOCK_R), tl.num_programs(0), num_stages=STAGES):
        offs_r = tl.cast(row_tile, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_r = offs_r < num_rows
        mask = mask_r[:, None] & mask_c[None, :]
        offs = offs_r[:, None] * num_cols + offs_c[None, :]
        if STAGES > 1:  # drawn while the tile is on its way
            kept = _kept_tile(seed_ptr, offs_r[:, None], mask, dropout, BLOCK_R, BLOCK_C)
        dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        s = tl.load(s_ptr + offs_r[:, None] * s_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + offs_r, mask=mask_r, other=0.0)
        if CENTRE:
            s -= tl.load(mean_ptr + offs_r, mask=mask_r, other=0.0)[:, None]
        x_hat = s * rstd[:, None]  # (4); what it is in the padding does not matter: dy and g are 0 there
        dweight += dy * x_hat  # (10)
        if dbias_ptr is not None:
            dbias += dy
        g = dy * weight[None, :]
        if STAGES == 1:  # before its loads registers would spill
            kept = _kept_tile(seed_ptr, offs_r[:, None], mask, dropout, BLOCK_R, BLOCK_C)
        if CENTRE:
            sum_g_x_hat, sum_g = tl.split(tl.sum(tl.join(g * x_hat, g), axis=1))  # warps wait for each other once
            total = g - x_hat * (sum_g_x_hat / num_cols)[:, None] - (sum_g / num_cols)[:, None]
        else:
            total = g - x_hat * (tl.sum(g * x_hat, axis=1) / num_cols)[:, None]
        total *= rstd[:, None]  # (7)
        if ds_ptr is not None:
            ds_offs = offs_r[:, None] * ds_row_stride + offs_c[None, :]
            total += tl.load(ds_ptr + ds_offs, mask=mask, other=0.0).to(tl.float32)  # (8)
        if seed_ptr is not None:
            tl.store(dresidual_ptr + offs, total.to(dresidual_ptr.dtype.element_ty), mask=mask)
            total = _drop(total, kept, dropout)  # (9)
        tl.store(dx_ptr + offs, total.to(dx_ptr.dtype.element_ty), mask=mask)
    partial = tl.cast(program, tl.int64) * num_cols + offs_c
    tl.store(dweight_ptr + partial, tl.sum(dweight, axis=0), mask=mask_c)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, axis=0), mask=mask_c)


@triton.jit
def _row_norm_wide_forward_kernel(
    x_ptr,  # in   (R, C)
    residual_ptr,  # in   (R, C); None without a residual
    weight_ptr,  # in   (C,)
    bias_ptr,  # in   (C,); None without a bias
    seed_ptr,  # in   () int64; None without dropout
    y_ptr,  # out  (R, C), contiguous
    s_ptr,  # out  (R, C), contiguous, where there is a residual or dropout
    mean_ptr,  # out  (R,) float32, with CENTRE
    rstd_ptr,  # out  (R,) float32
    row_strides,  # of x and residual, in elements
    num_cols,  # C
    eps,
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    CENTRE: tl.constexpr,
    BLOCK_C: tl.constexpr,  # columns at a time; the second and third time they come from the cache
):
    x_row_stride, residual_row_stride = row_strides
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row_stride
    if residual_ptr is not None:
        residual_ptr += row * residual_row_stride
    mean = 0.0
    if CENTRE:
        sums = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, num_cols, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask = offs_c < num_cols
            kept = _kept_part(seed_ptr, row, start, mask, dropout, BLOCK_C)
            sums += _sum(x_ptr, residual_ptr, seed_ptr, offs_c, offs_c, mask, kept, dropout)
        mean = tl.sum(sums, axis=0) / num_cols  # (2)
        tl.store(mean_ptr + row, mean)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, num_cols, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask = offs_c < num_cols
        kept = _kept_part(seed_ptr, row, start, mask, dropout, BLOCK_C)
        s = _sum(x_ptr, residual_ptr, seed_ptr, offs_c, offs_c, mask, kept, dropout)
        s = tl.where(mask, s - mean, 0.0)
        squares += s * s
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / num_cols + eps)  # (3)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, num_cols, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask, index = offs_c < num_cols, row * num_cols + offs_c
        kept = _kept_part(seed_ptr, row, start, mask, dropout, BLOCK_C)
        s = _sum(x_ptr, residual_ptr, seed_ptr, offs_c, offs_c, mask, kept, dropout)
        if residual_ptr is not None or seed_ptr is not None:
            tl.store(s_ptr + index, s.to(s_ptr.dtype.element_ty), mask=mask)
        y = (s - mean) * rstd * tl.load(weight_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)  # (4)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _row_norm_wide_backward_kernel(
    dy_ptr,  # in   (R, C)
    ds_ptr,  # in   (R, C); None where nobody used s
    s_ptr,  # in   (R, C)
    weight_ptr,  # in   (C,)
    mean_ptr,  # in   (R,) float32, with CENTRE
    rstd_ptr,  # in   (R,) float32
    seed_ptr,  # in   () int64; None without dropout
    dx_ptr,  # out  (R, C), contiguous
    dresidual_ptr,  # out  (R, C), contiguous, where there is dropout: else it is dx
    row_strides,  # of dy, ds and s, in elements
    num_cols,  # C
    dropout,  # (p, 1 / (1 - p)), where there is a seed
    CENTRE: tl.constexpr,
    BLOCK_C: tl.constexpr,  # columns at a time
):
    dy_row_stride, ds_row_stride, s_row_stride = row_strides
    row = tl.program_id(0).to(tl.int64)
    dy_ptr += row * dy_row_stride
    s_ptr += row * s_row_stride
    mean = tl.load(mean_ptr + row) if CENTRE else 0.0
    rstd = tl.load(rstd_ptr + row)
    g_sums = tl.zeros((BLOCK_C,), tl.float32)
    g_x_hat_sums = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, num_cols, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask = offs_c < num_cols
        x_hat = (tl.load(s_ptr + offs_c, mask=mask, other=0.0).to(tl.float32) - mean) * rstd  # (4)
        g = tl.load(dy_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)
        g *= tl.load(weight_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)
        g_sums += g
        g_x_hat_sums += g * x_hat
    mean_g = tl.sum(g_sums, axis=0) / num_cols if CENTRE else 0.0
    mean_g_x_hat = tl.sum(g_x_hat_sums, axis=0) / num_cols
    for start in range(0, num_cols, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask, index = offs_c < num_cols, row * num_cols + offs_c
        x_hat = (tl.load(s_ptr + offs_c, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        g = tl.load(dy_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)
        g *= tl.load(weight_ptr + offs_c, mask=mask, other=0.0).to(tl.float32)
        total = rstd * (g - mean_g - x_hat * mean_g_x_hat)  # (7)
        if ds_ptr is not None:
            total += tl.load(ds_ptr + row * ds_row_stride + offs_c, mask=mask, other=0.0).to(tl.float32)  # (8)
        if seed_ptr is not None:
            tl.store(dresidual_ptr + index, total.to(dresidual_ptr.dtype.element_ty), mask=mask)
            kept = _kept_part(seed_ptr, row, start, mask, dropout, BLOCK_C)
            total = _drop(total, kept, dropout)  # (9)
        tl.store(dx_ptr + index, total.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _row_norm_wide_weight_kernel(
    dy_ptr,  # in   (R, C)
    s_ptr,  # in   (R, C)
    mean_ptr,  # in   (R,) float32, with CENTRE
    rstd_ptr,  # in   (R,) float32
    dweight_ptr,  # out  (row_programs, C) float32, one row of (10) per program of a column tile
    dbias_ptr,  # out  (row_programs, C) float32; None without a bias
    row_strides,  # of dy and s, in elements
    num_rows,  # R
    num_cols,  # C
    CENTRE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # of one column tile: a whole wide row of accumulators does not fit in registers
):
    dy_row_stride, s_row_stride = row_strides
    row_program = tl.program_id(1)
    offs_c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_cols
    dweight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row_tile in range(row_program, num_tiles(num_rows, BLOCK_R), tl.num_programs(1)):
        offs_r = tl.cast(row_tile, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_r = offs_r < num_rows
        mask = mask_r[:, None] & mask_c[None, :]
        dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        s = tl.load(s_ptr + offs_r[:, None] * s_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        if CENTRE:
            s -= tl.load(mean_ptr + offs_r, mask=mask_r, other=0.0)[:, None]
        dweight += dy * s * tl.load(rstd_ptr + offs_r, mask=mask_r, other=0.0)[:, None]  # (10)
        if dbias_ptr is not None:
            dbias += dy
    partial = tl.cast(row_program, tl.int64) * num_cols + offs_c
    tl.store(dweight_ptr + partial, tl.sum(dweight, axis=0), mask=mask_c)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, axis=0), mask=mask_c)
