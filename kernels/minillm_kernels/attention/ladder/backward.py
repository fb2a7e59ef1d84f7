r"""Rung 5: the backward pass. The weights were not kept: they are exp(a - lse) once more, for `causal.py` kept lse.

    da_ij = P_ij * (<dy_i, v_j> - delta_i),   delta_i = <dy_i, y_i>
    dv_j = sum_i P_ij * dy_i,   dk_j = scale * sum_i da_ij * q_i,   dq_i = scale * sum_j da_ij * k_j

`../backward.py` derives it, delta in (20). dk and dv are sums over queries, dq over keys: a kernel whose programs own
keys, another whose programs own queries, and every number is written once, by one program, in one order.

Read next: `rungs.py` and `__main__.py`, which check and time all of them; then `../forward.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels.attention.configs import padded_width
from minillm_kernels.attention.ladder.causal import attention_and_lse
from minillm_kernels.attention.ladder.rows import LOG2E, launch, row_pointers, tile_of
from minillm_kernels.launching import cdiv


@triton.jit
def _weights_and_gradient(q, k, v, dy, y, lse, i, j, scale, num_rows):
    """Return P and da for a tile of pairs (queries, keys)."""
    a = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
    seen = (j[None, :] <= i[:, None]) & (i < num_rows)[:, None]
    p = tl.where(seen, tl.exp2(a - lse[:, None]), 0.0)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    dp = tl.dot(dy, tl.trans(v), input_precision="ieee")
    return p, p * (dp - delta[:, None])


@triton.jit
def _dk_dv_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, dy_ptr,  # in   (B, T, H, D)
    lse_ptr,                   # in   (B, H, T) float32
    dk_ptr, dv_ptr,            # out  (B, T, H, D)
    num_rows,                  # T
    num_heads,                 # H
    scale,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK: tl.constexpr,       # keys of a program, queries of a tile
):  # fmt: skip
    start, row = tl.program_id(0) * BLOCK, tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    j = start + tl.arange(0, BLOCK)
    k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    v_rows, _ = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    k = tl.load(k_rows, mask=k_inside, other=0.0)
    v = tl.load(v_rows, mask=k_inside, other=0.0)
    dk = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(start, num_rows, BLOCK):  # the queries that see any of these keys
        i = first + tl.arange(0, BLOCK)
        q_rows, inside = row_pointers(q_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
        dy_rows, _ = row_pointers(dy_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        y_rows, _ = row_pointers(y_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        q = tl.load(q_rows, mask=inside, other=0.0)
        dy = tl.load(dy_rows, mask=inside, other=0.0)
        y = tl.load(y_rows, mask=inside, other=0.0)
        lse = tl.load(lse_ptr + row.to(tl.int64) * num_rows + i, mask=i < num_rows, other=0.0)
        p, da = _weights_and_gradient(q, k, v, dy, y, lse, i, j, scale, num_rows)
        dv = tl.dot(tl.trans(p.to(dy.dtype)), dy, dv, input_precision="ieee")
        dk = tl.dot(tl.trans(da.to(q.dtype)), q, dk, input_precision="ieee")
    dk_rows, _ = row_pointers(dk_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    dv_rows, _ = row_pointers(dv_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(dk_rows, (dk * scale).to(dk_ptr.dtype.element_ty), mask=k_inside)
    tl.store(dv_rows, dv.to(dv_ptr.dtype.element_ty), mask=k_inside)


@triton.jit
def _dq_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, dy_ptr,  # in   (B, T, H, D)
    lse_ptr,                   # in   (B, H, T) float32
    dq_ptr,                    # out  (B, T, H, D)
    num_rows,                  # T
    num_heads,                 # H
    scale,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK: tl.constexpr,       # queries of a program, keys of a tile
):  # fmt: skip
    start, row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK, tl.program_id(1)  # the longest first
    batch, head = row // num_heads, row % num_heads
    i = start + tl.arange(0, BLOCK)
    q_rows, inside = row_pointers(q_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    dy_rows, _ = row_pointers(dy_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    y_rows, _ = row_pointers(y_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    q = tl.load(q_rows, mask=inside, other=0.0)
    dy = tl.load(dy_rows, mask=inside, other=0.0)
    y = tl.load(y_rows, mask=inside, other=0.0)
    lse = tl.load(lse_ptr + row.to(tl.int64) * num_rows + i, mask=i < num_rows, other=0.0)
    dq = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, start + BLOCK, BLOCK):  # the keys that any of these queries sees
        j = first + tl.arange(0, BLOCK)
        k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        v_rows, _ = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        k = tl.load(k_rows, mask=k_inside, other=0.0)
        v = tl.load(v_rows, mask=k_inside, other=0.0)
        _, da = _weights_and_gradient(q, k, v, dy, y, lse, i, j, scale, num_rows)
        dq = tl.dot(da.to(k.dtype), k, dq, input_precision="ieee")
    dq_rows, _ = row_pointers(dq_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(dq_rows, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, lse = attention_and_lse(q, k, v)
        ctx.save_for_backward(q, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, y, lse = ctx.saved_tensors
        dy = gradients[0].contiguous()
        B, T, H, D = q.shape
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        block = tile_of(q)
        grid = (cdiv(T, block), B * H)
        sizes = {"HEAD_DIM": D, "BLOCK_D": padded_width(D), "BLOCK": block}
        launch(_dk_dv_kernel, grid, q, k, v, y, dy, lse, dk, dv, T, H, D**-0.5, **sizes)
        launch(_dq_kernel, grid, q, k, v, y, dy, lse, dq, T, H, D**-0.5, **sizes)
        return dq, dk, dv


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of contiguous (B, T, H, D) tensors, with its gradient."""
    return _Attention.apply(q, k, v)
