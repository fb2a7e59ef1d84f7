r"""attention, backward: two kernels for dk with dv, and dq; one more where a bias wants its gradient.

They compute (7) to (14) of `reference.py`, in which the numbers begin. The weights were not kept: they are P_ij =
exp(a_ij - lse_i) once more, by (19) of `forward.py`. Only (10) needs another form,

    da_ij = P_ij * (dP_ij - delta_i),   delta_i = sum_k P_ik * dP_ik

since delta as it stands there asks for a pass over the keys before any da is known. But by (8) and (5)
P_ik * dP_ik = P_ik * keep_ik / (1 - p) * dZ_ik = Z_ik * dZ_ik, so with dZ of (7), sums exchanged, and (6)

    delta_i = sum_k Z_ik * dZ_ik = sum_k Z_ik * sum_d dy_id * v_kd
            = sum_d dy_id * sum_k Z_ik * v_kd = sum_d dy_id * y_id                           (20)

which needs no keys at all: a small kernel computes it first. It holds with dropout, since y has the same weights Z.

dk and dv are sums over queries, (7) and (13), dq is one over keys: whoever computes them in one kernel has to add one
of them up across programs, with atomics whose order, and so whose rounding, changes from run to run. Here a program
that owns keys walks queries, (14) included, another that owns queries walks keys, and each number is written once: the
same bits every time, for seven products in place of five. (11) is a third kernel, whose programs own a tile of pairs
and walk what shares it. A kernel whose results nobody asked for is not launched.

Under causality the first keys have the most queries: in the order of the keys the longest programs start first.

Source: Dao et al. (2022), arXiv:2205.14135, appendix B.2 for (20).

Read next: `configs.py`, then `fused.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm_kernels.attention.scores import (
    kept_pairs,
    key_tiles,
    load_rows,
    query_tiles,
    row_pointers,
    score_tile,
    spans_of,
    store_rows,
)


@triton.jit
def _attention_delta_kernel(
    y_ptr,                     # in   (B, T, H, D)
    dy_ptr,                    # in   (B, T, H, D)
    delta_ptr,                 # out  (B, H, T) float32
    y_strides,                 # in elements, as all strides
    dy_strides,
    sizes,                     # Sizes
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_M: tl.constexpr,     # queries of a program
):  # fmt: skip
    num_tiles = tl.cdiv(sizes.num_queries, BLOCK_M)
    start = tl.program_id(0) % num_tiles * BLOCK_M
    row = tl.program_id(0) // num_tiles
    batch, head = row // sizes.num_heads, row % sizes.num_heads
    y_rows = row_pointers(y_ptr, y_strides, batch, head, BLOCK_M, BLOCK_D)
    dy_rows = row_pointers(dy_ptr, dy_strides, batch, head, BLOCK_M, BLOCK_D)
    y = load_rows(y_rows, y_strides, start, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    dy = load_rows(dy_rows, dy_strides, start, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)  # (20)
    queries = start + tl.arange(0, BLOCK_M)
    delta_row = delta_ptr + row.to(tl.int64) * sizes.num_queries
    tl.store(delta_row + queries, delta, mask=queries < sizes.num_queries)


@triton.jit
def _add_queries(
    sums,                      # dk and dv (BLOCK_N, BLOCK_D) so far
    own,                       # k and v (BLOCK_N, BLOCK_D)
    q_rows,                    # pointers (BLOCK_M, BLOCK_D) to query 0
    dy_rows,
    statistics,                # pointers to lse and delta of query 0
    q_strides,                 # in elements
    dy_strides,
    first_key,                 # of the tile
    batch,
    head,
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    begin,                     # a multiple of BLOCK_M
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,      # whether pairs of these tiles may be hidden, or queries missing
):  # fmt: skip
    """Return dk and dv, before their factors, with queries begin, ..., end - 1 added.

    Tiles of pairs are (keys, queries) here. A query past the last one has lse = inf, so that P = 0. A key past the last
    one has a row of its own, that nobody stores.
    """
    dk, dv = sums
    k, v = own
    lse_row, delta_row = statistics
    j = first_key + tl.arange(0, k.shape[0])[:, None]
    for start in range(begin, end, BLOCK_M):
        q = load_rows(q_rows, q_strides, start, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        raw = tl.dot(k, tl.trans(q), input_precision="ieee")  # (BLOCK_N, BLOCK_M)
        queries = start + tl.arange(0, BLOCK_M)
        i = queries[None, :]
        spans = spans_of(i, batch, see, sizes)
        a, unit, t = score_tile(raw, i, j, batch, head, spans, see, terms, sizes, MASKED)
        if MASKED:
            lse = tl.load(lse_row + queries, mask=queries < sizes.num_queries, other=float("inf"))
            delta = tl.load(delta_row + queries, mask=queries < sizes.num_queries, other=0.0)
        else:
            lse, delta = tl.load(lse_row + queries), tl.load(delta_row + queries)
        p = tl.exp2(a * unit - lse[None, :])
        dy = load_rows(dy_rows, dy_strides, start, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        z = p
        dp = tl.dot(v, tl.trans(dy), input_precision="ieee")
        if drop.seed is not None:
            kept = kept_pairs(i, j, first_key, batch, head, drop, sizes)
            z = tl.where(kept, p, 0.0)  # the factor 1 / (1 - p) comes at the end
            dp = tl.where(kept, dp * drop.factor, 0.0)  # (8)
        dv = tl.dot(z.to(dy.dtype), dy, dv, input_precision="ieee")  # (7)
        draw = p * (dp - delta[None, :])  # (10)
        if terms.softcap is not None:
            draw *= 1.0 - t * t  # (12)
        dk = tl.dot(draw.to(q.dtype), q, dk, input_precision="ieee")  # (13)
    return dk, dv


@triton.jit
def _attention_dk_dv_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, S, Hkv, D)
    v_ptr,                     # in   (B, S, Hkv, D)
    dy_ptr,                    # in   (B, T, H, D)
    lse_ptr,                   # in   (B, H, T) float32, in units of log2(e)
    delta_ptr,                 # in   (B, H, T) float32
    dk_ptr,                    # out  (B, S, Hkv, D)
    dv_ptr,                    # out  (B, S, Hkv, D)
    q_strides,                 # in elements, as all strides
    k_strides,
    v_strides,
    dy_strides,
    dkv_strides,               # of dk and of dv
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_M: tl.constexpr,     # queries of a tile
    BLOCK_N: tl.constexpr,     # keys of a program
):  # fmt: skip
    num_tiles = tl.cdiv(sizes.num_keys, BLOCK_N)
    first_key = tl.program_id(0) % num_tiles * BLOCK_N
    row = tl.program_id(0) // num_tiles
    num_key_heads = sizes.num_heads // sizes.group
    batch, key_head = row // num_key_heads, row % num_key_heads

    k_rows = row_pointers(k_ptr, k_strides, batch, key_head, BLOCK_N, BLOCK_D)
    v_rows = row_pointers(v_ptr, v_strides, batch, key_head, BLOCK_N, BLOCK_D)
    k = load_rows(k_rows, k_strides, first_key, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    v = load_rows(v_rows, v_strides, first_key, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    begin, full_begin, full_end, end = query_tiles(first_key, batch, see, sizes, BLOCK_M, BLOCK_N)

    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # Triton 3.6 moves what is the same for all members out of this loop, and then spills 1100 bytes a lane at D=64
    for member in tl.range(0, sizes.group, disable_licm=True):  # (14)
        head = key_head * sizes.group + member
        q_rows = row_pointers(q_ptr, q_strides, batch, head, BLOCK_M, BLOCK_D)
        dy_rows = row_pointers(dy_ptr, dy_strides, batch, head, BLOCK_M, BLOCK_D)
        query = (batch.to(tl.int64) * sizes.num_heads + head) * sizes.num_queries
        statistics = (lse_ptr + query, delta_ptr + query)
        if see.right is not None or see.key_spans is not None:  # else begin = full_begin
            dk, dv = _add_queries(
                (dk, dv), (k, v), q_rows, dy_rows, statistics, q_strides, dy_strides, first_key, batch, head,
                see, terms, drop, sizes, begin, tl.minimum(full_begin, end), HEAD_DIM, BLOCK_D, BLOCK_M, MASKED=True,
            )  # fmt: skip
        dk, dv = _add_queries(
            (dk, dv), (k, v), q_rows, dy_rows, statistics, q_strides, dy_strides, first_key, batch, head,
            see, terms, drop, sizes, full_begin, full_end, HEAD_DIM, BLOCK_D, BLOCK_M, MASKED=False,
        )  # fmt: skip
        dk, dv = _add_queries(
            (dk, dv), (k, v), q_rows, dy_rows, statistics, q_strides, dy_strides, first_key, batch, head,
            see, terms, drop, sizes, full_end, end, HEAD_DIM, BLOCK_D, BLOCK_M, MASKED=True,
        )  # fmt: skip

    dk *= terms.scale  # (13)
    if drop.seed is not None:
        dv *= drop.factor  # (5)
    dk_rows = row_pointers(dk_ptr, dkv_strides, batch, key_head, BLOCK_N, BLOCK_D)
    dv_rows = row_pointers(dv_ptr, dkv_strides, batch, key_head, BLOCK_N, BLOCK_D)
    store_rows(dk_rows, dkv_strides, first_key, sizes.num_keys, dk, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_rows, dkv_strides, first_key, sizes.num_keys, dv, HEAD_DIM, BLOCK_N, BLOCK_D)


@triton.jit
def _score_gradient(
    of_queries,                # q and dy (BLOCK_M, BLOCK_D), lse and delta (BLOCK_M,)
    k,                         # (BLOCK_N, BLOCK_D)
    v,
    i,                         # (BLOCK_M, 1)
    first_key,                 # of the tile
    batch,
    head,
    spans,
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    MASKED: tl.constexpr,      # whether pairs of this tile may be hidden, or keys missing
):  # fmt: skip
    """Return da of (10), and t, for a tile (BLOCK_M, BLOCK_N)."""
    q, dy, lse, delta = of_queries
    j = first_key + tl.arange(0, k.shape[0])[None, :]
    raw = tl.dot(q, tl.trans(k), input_precision="ieee")
    a, unit, t = score_tile(raw, i, j, batch, head, spans, see, terms, sizes, MASKED)  # pyright: ignore[reportGeneralTypeIssues]
    p = tl.exp2(a * unit - lse[:, None])
    dp = tl.dot(dy, tl.trans(v), input_precision="ieee")
    if drop.seed is not None:
        kept = kept_pairs(i, j, first_key, batch, head, drop, sizes)
        dp = tl.where(kept, dp * drop.factor, 0.0)  # (8)
    return p * (dp - delta[:, None]), t  # (10)


@triton.jit
def _add_keys(
    dq,                        # (BLOCK_M, BLOCK_D) so far
    own,                       # q and dy (BLOCK_M, BLOCK_D), lse and delta (BLOCK_M,)
    k_rows,                    # pointers (BLOCK_N, BLOCK_D) to key 0
    v_rows,
    k_strides,                 # in elements
    v_strides,
    i,                         # (BLOCK_M, 1) which queries
    batch,
    head,
    spans,
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    begin,                     # a multiple of BLOCK_N
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return dq (before the scale) with keys begin, ..., end - 1 added."""
    for start in range(begin, end, BLOCK_N):
        k = load_rows(k_rows, k_strides, start, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        v = load_rows(v_rows, v_strides, start, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        draw, t = _score_gradient(
            own, k, v, i, start, batch, head, spans, see, terms, drop, sizes, MASKED
        )  # fmt: skip
        if terms.softcap is not None:
            draw *= 1.0 - t * t  # (12)
        dq = tl.dot(draw.to(k.dtype), k, dq, input_precision="ieee")  # (13)
    return dq


@triton.jit
def _attention_dq_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, S, Hkv, D)
    v_ptr,                     # in   (B, S, Hkv, D)
    dy_ptr,                    # in   (B, T, H, D)
    lse_ptr,                   # in   (B, H, T) float32, in units of log2(e)
    delta_ptr,                 # in   (B, H, T) float32
    dq_ptr,                    # out  (B, T, H, D)
    q_strides,                 # in elements, as all strides
    k_strides,
    v_strides,
    dy_strides,
    dq_strides,
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
    dy_rows = row_pointers(dy_ptr, dy_strides, batch, head, BLOCK_M, BLOCK_D)
    k_rows = row_pointers(k_ptr, k_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
    v_rows = row_pointers(v_ptr, v_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
    q = load_rows(q_rows, q_strides, first_query, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    dy = load_rows(dy_rows, dy_strides, first_query, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    statistics = row.to(tl.int64) * sizes.num_queries + queries
    lse = tl.load(lse_ptr + statistics, mask=queries < sizes.num_queries, other=float("inf"))
    delta = tl.load(delta_ptr + statistics, mask=queries < sizes.num_queries, other=0.0)
    spans = spans_of(i, batch, see, sizes)
    begin, full_begin, full_end, end = key_tiles(first_query, batch, see, sizes, BLOCK_M, BLOCK_N)

    own = (q, dy, lse, delta)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if see.left is not None or see.key_start is not None or see.spans is not None:  # else begin = full_begin
        dq = _add_keys(
            dq, own, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans,
            see, terms, drop, sizes, begin, tl.minimum(full_begin, end), HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True,
        )  # fmt: skip
    dq = _add_keys(
        dq, own, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans,
        see, terms, drop, sizes, full_begin, full_end, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=False,
    )  # fmt: skip
    dq = _add_keys(
        dq, own, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans,
        see, terms, drop, sizes, full_end, end, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True,
    )  # fmt: skip

    dq *= terms.scale  # (13)
    dq_rows = row_pointers(dq_ptr, dq_strides, batch, head, BLOCK_M, BLOCK_D)
    store_rows(dq_rows, dq_strides, first_query, sizes.num_queries, dq, HEAD_DIM, BLOCK_M, BLOCK_D)


@triton.jit
def _attention_dbias_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, S, Hkv, D)
    v_ptr,                     # in   (B, S, Hkv, D)
    dy_ptr,                    # in   (B, T, H, D)
    lse_ptr,                   # in   (B, H, T) float32, in units of log2(e)
    delta_ptr,                 # in   (B, H, T) float32
    dbias_ptr,                 # out  (Bb, Hb, T, S), contiguous; Bb is 1 or B, Hb is 1 or H
    q_strides,                 # in elements, as all strides
    k_strides,
    v_strides,
    dy_strides,
    shared,                    # (B / Bb, H / Hb): the rows and the heads that share one element
    see,                       # Visibility
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_M: tl.constexpr,     # queries and
    BLOCK_N: tl.constexpr,     # keys of a program's tile of pairs
):  # fmt: skip
    num_shared_rows, num_shared_heads = shared
    num_tiles_n = tl.cdiv(sizes.num_keys, BLOCK_N)
    num_tiles = tl.cdiv(sizes.num_queries, BLOCK_M) * num_tiles_n
    tile = tl.program_id(0) % num_tiles
    plane = tl.program_id(0) // num_tiles  # which (T, S) of the bias
    first_query, first_key = tile // num_tiles_n * BLOCK_M, tile % num_tiles_n * BLOCK_N
    queries = first_query + tl.arange(0, BLOCK_M)
    i = queries[:, None]
    j = first_key + tl.arange(0, BLOCK_N)[None, :]
    num_planes_h = sizes.num_heads // num_shared_heads
    first_row, first_head = plane // num_planes_h * num_shared_rows, plane % num_planes_h * num_shared_heads

    dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for member in range(num_shared_rows * num_shared_heads):
        batch, head = first_row + member // num_shared_heads, first_head + member % num_shared_heads
        q_rows = row_pointers(q_ptr, q_strides, batch, head, BLOCK_M, BLOCK_D)
        dy_rows = row_pointers(dy_ptr, dy_strides, batch, head, BLOCK_M, BLOCK_D)
        k_rows = row_pointers(k_ptr, k_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
        v_rows = row_pointers(v_ptr, v_strides, batch, head // sizes.group, BLOCK_N, BLOCK_D)
        q = load_rows(q_rows, q_strides, first_query, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        dy = load_rows(dy_rows, dy_strides, first_query, sizes.num_queries, HEAD_DIM, BLOCK_M, BLOCK_D, True)
        k = load_rows(k_rows, k_strides, first_key, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
        v = load_rows(v_rows, v_strides, first_key, sizes.num_keys, HEAD_DIM, BLOCK_N, BLOCK_D, True)
        statistics = (batch.to(tl.int64) * sizes.num_heads + head) * sizes.num_queries + queries
        lse = tl.load(lse_ptr + statistics, mask=queries < sizes.num_queries, other=float("inf"))
        delta = tl.load(delta_ptr + statistics, mask=queries < sizes.num_queries, other=0.0)
        spans = spans_of(i, batch, see, sizes)
        da, _ = _score_gradient(
            (q, dy, lse, delta), k, v, i, first_key, batch, head, spans, see, terms, drop, sizes, MASKED=True
        )  # fmt: skip
        dbias += da  # (11)
    row = dbias_ptr + plane.to(tl.int64) * sizes.num_queries * sizes.num_keys
    here = row + i.to(tl.int64) * sizes.num_keys + j
    tl.store(here, dbias.to(dbias_ptr.dtype.element_ty), mask=(i < sizes.num_queries) & (j < sizes.num_keys))
