r"""Rung 2: a tile of queries a program. A key that has been read serves all of them, by matrix products.

The softmax still needs the maximum of a whole row before it can weigh a value, so the scores wait in memory: T^2
numbers written once and read once, more traffic than everything else together.

Read next: `online.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels.attention.configs import padded_width
from minillm_kernels.attention.ladder.rows import LOG2E, launch, row_pointers, tile_of
from minillm_kernels.launching import cdiv


@triton.jit
def _tiled_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, T, H, D)
    v_ptr,                     # in   (B, T, H, D)
    scores_ptr,                # work (B, H, T, T) float32: written, then read by the same program
    y_ptr,                     # out  (B, T, H, D)
    num_rows,                  # T
    num_heads,                 # H
    scale,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK: tl.constexpr,       # queries of a program, keys of a tile
):  # fmt: skip
    start, row = tl.program_id(0) * BLOCK, tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    i = start + tl.arange(0, BLOCK)
    q_rows, inside = row_pointers(q_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    q = tl.load(q_rows, mask=inside, other=0.0)
    lines = scores_ptr + (row.to(tl.int64) * num_rows + i[:, None]) * num_rows
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, num_rows, BLOCK):
        j = first + tl.arange(0, BLOCK)
        k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        k = tl.load(k_rows, mask=k_inside, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(j[None, :] <= i[:, None], score, float("-inf"))
        tl.store(lines + j[None, :], score, mask=(i[:, None] < num_rows) & (j[None, :] < num_rows))
        m = tl.maximum(m, tl.max(score, 1))
    tl.debug_barrier()  # other threads of the program wrote what this one reads
    total = tl.zeros((BLOCK,), tl.float32)
    y = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, num_rows, BLOCK):
        j = first + tl.arange(0, BLOCK)
        there = (i[:, None] < num_rows) & (j[None, :] < num_rows)
        score = tl.load(lines + j[None, :], mask=there, other=float("-inf"))
        p = tl.exp2((score - m[:, None]) * LOG2E)
        total += tl.sum(p, 1)
        v_rows, v_inside = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        v = tl.load(v_rows, mask=v_inside, other=0.0)
        y = tl.dot(p.to(v.dtype), v, y, input_precision="ieee")
    y = y / tl.where(total == 0.0, 1.0, total)[:, None]  # rows past the last have no sum
    y_rows, inside = row_pointers(y_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(y_rows, y.to(y_ptr.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of contiguous (B, T, H, D) tensors."""
    B, T, H, D = q.shape
    scores = torch.empty((B, H, T, T), dtype=torch.float32, device=q.device)
    y = torch.empty_like(q)
    block = tile_of(q)
    sizes = {"HEAD_DIM": D, "BLOCK_D": padded_width(D), "BLOCK": block}
    launch(_tiled_kernel, (cdiv(T, block), B * H), q, k, v, scores, y, T, H, D**-0.5, **sizes)
    return y
