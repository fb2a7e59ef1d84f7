r"""attention, forward, in one pass over the keys: the online softmax.

The numbers go on from `reference.py`, whose (1) to (6) are computed here: scores by (1) to (3), as there, then the
softmax (4) and the mean (6) in one. A softmax does not change when a number is added to all scores of a row:
exp(a_j + c) = exp(c) * exp(a_j), and exp(c) cancels. So (4) holds for any m in place of the maximum, and by (6)

    y = (sum_j exp(a_j - m) * v_j) / (sum_j exp(a_j - m))                                   (15)

With m = max_j a_j no exponential passes 1. But the maximum is known only when all keys have been seen, and to see them
twice is to read them twice. Let m, w, o be what (15) needs of the keys so far, for the maximum so far:

    m = max_j a_j,   w = sum_j exp(a_j - m),   o = sum_j exp(a_j - m) * v_j                 (16)

For a tile J of further keys m' = max(m, max_J a_j), and with exp(a_j - m') = exp(a_j - m) * exp(m - m') the sums of
(16) move to the new maximum by one factor:

    w' = w * exp(m - m') + sum_J exp(a_j - m')                                              (17)
    o' = o * exp(m - m') + sum_J exp(a_j - m') * v_j                                        (18)

which start at m = -inf, w = 0, o = 0. At the end, by (15), and for the backward pass:

    y = o / w,   lse = m + log(w), so that P_j = exp(a_j - lse)                             (19)

Dropout multiplies the weights of (18) by keep_j / (1 - p), by (5), and not those of (17): it comes after the softmax. A
row that has seen nothing has m' = -inf, where a - m' would be NaN: 0 is subtracted instead. If it never sees anything
then w = 0, y is set to 0, and lse to +inf, for which P of (19) is 0 in the backward pass.

All exponentials are base 2: a, m and lse are kept in units of log2(e).

One program owns BLOCK_M queries of one head. It walks the tiles of BLOCK_N keys that any of them sees, those without a
hidden pair in a loop that tests none. Under causality the programs with most keys start first, so that the last ones
to end are short.

Source: Milakov and Gimelshein (2018), arXiv:1805.02867 for (17); Dao (2023), arXiv:2307.08691 for the order of loops.

Read next: `backward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm_kernels.attention.scores import (
    kept_pairs,
    key_tiles,
    load_rows,
    row_pointers,
    score_tile,
    spans_of,
    store_rows,
)


@triton.jit
def online_softmax(
    sums,                      # m (M,), w (M,) and o (M, BLOCK_D) of (16) so far
    q,                         # (M, BLOCK_D)
    k_rows,                    # pointers (BLOCK_N, BLOCK_D) to key 0
    v_rows,
    k_strides,                 # in elements
    v_strides,
    i,                         # (M, 1) which queries
    batch,
    head,                      # a number, or (M, 1)
    spans,                     # of the queries
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    begin,                     # a multiple of BLOCK_N
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,      # whether pairs of these tiles may be hidden, or keys missing
):  # fmt: skip
    """Return m, w, o after keys begin, ..., end - 1."""
    m, w, o = sums
    for start in range(begin, end, BLOCK_N):
        k = load_rows(k_rows, k_strides, start, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        raw = tl.dot(q, tl.trans(k), input_precision="ieee")
        j = start + tl.arange(0, BLOCK_N)[None, :]
        a, unit, _ = score_tile(raw, i, j, batch, head, spans, see, terms, sizes, MASKED)
        m_new = tl.maximum(m, tl.max(a, 1) * unit)
        subtracted = m_new
        if MASKED or terms.bias is not None:  # a bias may be -inf
            subtracted = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(a * unit - subtracted[:, None])
        rescale = tl.exp2(m - subtracted)
        w = w * rescale + tl.sum(p, 1)  # (17)
        if drop.seed is not None:
            p = tl.where(kept_pairs(i, j, start, batch, head, drop, sizes), p, 0.0)
        v = load_rows(v_rows, v_strides, start, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        o = tl.dot(p.to(v.dtype), v, o * rescale[:, None], input_precision="ieee")  # (18)
        m = m_new
    return m, w, o


@triton.jit
def _attention_forward_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, S, Hkv, D)
    v_ptr,                     # in   (B, S, Hkv, D)
    y_ptr,                     # out  (B, T, H, D)
    lse_ptr,                   # out  (B, H, T) float32, in units of log2(e)
    q_strides,                 # in elements, as all strides
    k_strides,
    v_strides,
    y_strides,
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_M: tl.constexpr,     # queries of a program
    BLOCK_N: tl.constexpr,     # keys of a tile
):  # fmt: skip
    num_tiles = tl.cdiv(sizes.num_queries, BLOCK_M)
    tile = tl.program_id(0) % num_tiles
    row = tl.program_id(0) // num_tiles
    batch, head = row // sizes.num_heads, row % sizes.num_heads
    if see.right is not None:
        tile = num_tiles - 1 - tile  # the longest first
    first_query = tile * BLOCK_M
    queries = first_query + tl.arange(0, BLOCK_M)
    i = queries[:, None]

    q_rows = row_pointers(q_ptr, q_strides, batch, head, BLOCK_M, BLOCK_D)
    k_rows = row_pointers(k_ptr, k_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
    v_rows = row_pointers(v_ptr, v_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
    q = load_rows(q_rows, q_strides, first_query, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    spans = spans_of(i, batch, see, sizes)
    begin, full_begin, full_end, end = key_tiles(first_query, batch, see, sizes, BLOCK_M, BLOCK_N)

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    w = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if see.left is not None or see.key_start is not None or see.spans is not None:  # else begin = full_begin
        m, w, o = online_softmax(
            (m, w, o), q, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans, see, terms, drop, sizes,
            begin, tl.minimum(full_begin, end), HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True,
        )  # fmt: skip
    m, w, o = online_softmax(
        (m, w, o), q, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans, see, terms, drop, sizes,
        full_begin, full_end, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=False,
    )  # fmt: skip
    m, w, o = online_softmax(
        (m, w, o), q, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans, see, terms, drop, sizes,
        full_end, end, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True,
    )  # fmt: skip

    empty = w == 0.0
    factor = 1.0 / tl.where(empty, 1.0, w)
    if drop.seed is not None:
        factor = factor * drop.factor
    y_rows = row_pointers(y_ptr, y_strides, batch, head, BLOCK_M, BLOCK_D)
    y = o * factor[:, None]  # (19)
    store_rows(y_rows, y_strides, first_query, sizes.num_queries, y, HEAD_DIM, BLOCK_M, BLOCK_D)
    lse = tl.where(empty, float("inf"), m + tl.log2(tl.where(empty, 1.0, w)))  # (19)
    lse_row = lse_ptr + row.to(tl.int64) * sizes.num_queries
    tl.store(lse_row + queries, lse, mask=queries < sizes.num_queries)
