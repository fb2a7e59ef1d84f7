r"""Rung 1: the definition, one program a query.

    score_j = scale * <q, k_j> for j <= i,   P_j = exp(score_j - max) / sum,   y = sum_j P_j * v_j

The first kernel writes a row of scores to memory, the second reads it, and its sums run over all keys at once. Each
program reads all keys of its head for a single query: T programs read T keys, T^2 * D numbers, and no two products
share a load. That, and the T^2 scores in memory, is what the next rungs take away.

Read next: `tiled.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels.attention.configs import padded_width
from minillm_kernels.attention.ladder.rows import LOG2E, launch, row_pointers


@triton.jit
def _naive_scores_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, T, H, D)
    scores_ptr,                # out  (B, H, T, T) float32
    num_rows,                  # T
    num_heads,                 # H
    scale,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_T: tl.constexpr,     # power of two >= T
):  # fmt: skip
    i, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    j = tl.arange(0, BLOCK_T)
    q_row, inside = row_pointers(q_ptr, batch, head, i + tl.arange(0, 1), num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    q = tl.load(q_row, mask=inside, other=0.0).to(tl.float32)  # (1, D)
    k = tl.load(k_rows, mask=k_inside, other=0.0).to(tl.float32)  # (T, D)
    score = tl.where(j <= i, scale * tl.sum(q * k, 1), float("-inf"))
    here = scores_ptr + (row.to(tl.int64) * num_rows + i) * num_rows
    tl.store(here + j, score, mask=j < num_rows)


@triton.jit
def _naive_values_kernel(
    scores_ptr,                # in   (B, H, T, T) float32
    v_ptr,                     # in   (B, T, H, D)
    y_ptr,                     # out  (B, T, H, D)
    num_rows,                  # T
    num_heads,                 # H
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_T: tl.constexpr,     # power of two >= T
):  # fmt: skip
    i, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    j = tl.arange(0, BLOCK_T)
    here = scores_ptr + (row.to(tl.int64) * num_rows + i) * num_rows
    score = tl.load(here + j, mask=j < num_rows, other=float("-inf"))
    e = tl.exp2((score - tl.max(score, 0)) * LOG2E)
    p = e / tl.sum(e, 0)
    v_rows, v_inside = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    v = tl.load(v_rows, mask=v_inside, other=0.0).to(tl.float32)  # (T, D)
    y = tl.sum(p[:, None] * v, 0)[None, :]
    y_row, inside = row_pointers(y_ptr, batch, head, i + tl.arange(0, 1), num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(y_row, y.to(y_ptr.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of contiguous (B, T, H, D) tensors; T * D at most 2**20, what one tile may hold."""
    B, T, H, D = q.shape
    scores = torch.empty((B, H, T, T), dtype=torch.float32, device=q.device)
    y = torch.empty_like(q)
    sizes = {"HEAD_DIM": D, "BLOCK_D": padded_width(D), "BLOCK_T": padded_width(T)}
    launch(_naive_scores_kernel, (T, B * H), q, k, scores, T, H, D**-0.5, **sizes)
    launch(_naive_values_kernel, (T, B * H), scores, v, y, T, H, **sizes)
    return y
