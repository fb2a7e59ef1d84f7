r"""Rung 4: no work on what is hidden. A query sees no key after it, so the loop ends at its tile; before that tile
every pair is visible, and the loop tests none. Half the products are gone, and most of the comparisons.

Programs late in the sequence now have the most keys. They start first, so that no long one is left over at the end.

Read next: `backward.py`.
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
def _add_tile(
    m, w, o, q, i, k_ptr, v_ptr, batch, head, first, num_rows, num_heads, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    DIAGONAL: tl.constexpr,    # whether the tile holds hidden pairs
):  # fmt: skip
    """Return m, w, o of `online.py` after one more tile of keys."""
    j = first + tl.arange(0, BLOCK)
    k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    v_rows, _ = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    k = tl.load(k_rows, mask=k_inside, other=0.0)
    v = tl.load(v_rows, mask=k_inside, other=0.0)
    a = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
    if DIAGONAL:
        a = tl.where(j[None, :] <= i[:, None], a, float("-inf"))
    m_new = tl.maximum(m, tl.max(a, 1))
    p = tl.exp2(a - m_new[:, None])
    rescale = tl.exp2(m - m_new)
    w = w * rescale + tl.sum(p, 1)
    o = tl.dot(p.to(v.dtype), v, o * rescale[:, None], input_precision="ieee")
    return m_new, w, o


@triton.jit
def _causal_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, T, H, D)
    v_ptr,                     # in   (B, T, H, D)
    y_ptr,                     # out  (B, T, H, D)
    lse_ptr,                   # out  (B, H, T) float32, in units of log2(e), for `backward.py`
    num_rows,                  # T
    num_heads,                 # H
    scale,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK: tl.constexpr,       # queries of a program, keys of a tile
):  # fmt: skip
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK  # the longest first
    row = tl.program_id(1)
    batch, head = row // num_heads, row % num_heads
    i = start + tl.arange(0, BLOCK)
    q_rows, inside = row_pointers(q_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)  # pyright: ignore[reportGeneralTypeIssues]
    q = tl.load(q_rows, mask=inside, other=0.0)
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    w = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, start, BLOCK):
        m, w, o = _add_tile(
            m, w, o, q, i, k_ptr, v_ptr, batch, head, first, num_rows, num_heads, scale,
            HEAD_DIM, BLOCK_D, BLOCK, DIAGONAL=False,
        )  # fmt: skip
    m, w, o = _add_tile(
        m, w, o, q, i, k_ptr, v_ptr, batch, head, start, num_rows, num_heads, scale,
        HEAD_DIM, BLOCK_D, BLOCK, DIAGONAL=True,
    )  # fmt: skip
    y_rows, inside = row_pointers(y_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(y_rows, (o / w[:, None]).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + row.to(tl.int64) * num_rows + i, m + tl.log2(w), mask=i < num_rows)


def attention_and_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return causal attention of contiguous (B, T, H, D) tensors, and lse (B, H, T) in units of log2(e)."""
    B, T, H, D = q.shape
    y = torch.empty_like(q)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    block = tile_of(q)
    sizes = {"HEAD_DIM": D, "BLOCK_D": padded_width(D), "BLOCK": block}
    launch(_causal_kernel, (cdiv(T, block), B * H), q, k, v, y, lse, T, H, D**-0.5, **sizes)
    return y, lse


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of contiguous (B, T, H, D) tensors."""
    return attention_and_lse(q, k, v)[0]
