r"""Rung 3: the online softmax. The maximum so far is enough, if what was summed under an older one is rescaled.

    m' = max(m, max_J a_j)
    w' = w * exp(m - m') + sum_J exp(a_j - m')
    o' = o * exp(m - m') + sum_J exp(a_j - m') * v_j

`../forward.py` derives it. One loop, no score in memory: reads are q once, k and v once for each tile of queries.

Read next: `causal.py`.
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
def _online_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, T, H, D)
    v_ptr,                     # in   (B, T, H, D)
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
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    w = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, num_rows, BLOCK):
        j = first + tl.arange(0, BLOCK)
        k_rows, k_inside = row_pointers(k_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        v_rows, _ = row_pointers(v_ptr, batch, head, j, num_rows, num_heads, HEAD_DIM, BLOCK_D)
        k = tl.load(k_rows, mask=k_inside, other=0.0)
        v = tl.load(v_rows, mask=k_inside, other=0.0)
        a = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        a = tl.where(j[None, :] <= i[:, None], a, float("-inf"))
        m_new = tl.maximum(m, tl.max(a, 1))  # never -inf: each query sees key 0, in the first tile
        p = tl.exp2(a - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        w = w * rescale + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * rescale[:, None], input_precision="ieee")
        m = m_new
    y_rows, inside = row_pointers(y_ptr, batch, head, i, num_rows, num_heads, HEAD_DIM, BLOCK_D)
    tl.store(y_rows, (o / w[:, None]).to(y_ptr.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention of contiguous (B, T, H, D) tensors."""
    B, T, H, D = q.shape
    y = torch.empty_like(q)
    block = tile_of(q)
    sizes = {"HEAD_DIM": D, "BLOCK_D": padded_width(D), "BLOCK": block}
    launch(_online_kernel, (cdiv(T, block), B * H), q, k, v, y, T, H, D**-0.5, **sizes)
    return y
