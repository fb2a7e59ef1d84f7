r"""What the attention kernels share: who sees whom, and the score of a pair, for one tile of queries and keys.

A tile has queries along one axis and keys along the other, in either order: `i` is (M, 1) and `j` (1, N), or `i` is
(1, M) and `j` (N, 1). Everything here broadcasts, so that the forward pass, both backward passes and decoding use the
same code. Equation numbers begin in `reference.py`; scores are in units of log2(e), because exp2 is what a GPU has.

Every mask but `segments` shows a query an interval of keys (and a prefix), so that a query has a *span*:

    first <= j < stop          keys of its own sequence or document, within key_start and key_stop
    shift                      its key position is i + shift: distance(i, j) = j - (i + shift)
    prefix_stop                keys before it are seen whatever the distance

Where cu_seqlens or segments make spans differ from query to query they are read from memory (`spans.py` computes them);
elsewhere they are numbers, and the code that reads them is not compiled. The same holds for every mask: what a call
does not ask for is None, a constant to the compiler.

Read next: `forward.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from minillm_kernels.exponential import LOG2E
from minillm_kernels.philox_tiles import kept_tile, kept_tile_across


class Sizes(NamedTuple):
    """Of one call: T, S, H, and the H / Hkv query heads that read one key head."""

    num_queries: Any
    num_keys: Any
    num_heads: Any
    group: Any


class Visibility(NamedTuple):
    """The masks of one call; None for each that it does not have.

    left, right: bounds of the distance; causality is right = 0.
    key_start, key_stop, prefix: pointers to (B,) integers.
    segments: pointer to (B, T) integers.
    spans: pointer to (B, 4, T) int32: first, stop, shift and the start of the sequence, of each query.
    key_spans: pointer to (B, 3, S) int32: first query, stop query and shift, of each key.
    """

    left: Any
    right: Any
    key_start: Any
    key_stop: Any
    prefix: Any
    segments: Any
    spans: Any
    key_spans: Any


class Terms(NamedTuple):
    """What a score is made of; None for what it does not have.

    scale: float. folds: 1 where scale > 0 in float32, else None: then a maximum may be taken before scaling.
    softcap: float. alibi: pointer to (H,). bias: pointer to (1 or B, 1 or H, T, S). bias_b, bias_h, bias_t, bias_s: its
    strides in elements, 0 along an axis that is shared; four fields, since Triton 3.6 loses a 1 in a tuple in a tuple.
    """

    scale: Any
    folds: Any
    softcap: Any
    alibi: Any
    bias: Any
    bias_b: Any
    bias_h: Any
    bias_t: Any
    bias_s: Any


class Dropout(NamedTuple):
    """All None without dropout. p: float. seed: pointer to one int64. factor: 1 / (1 - p), of p in float64."""

    p: Any
    seed: Any
    factor: Any


@triton.jit
def row_pointers(ptr, strides, batch, head, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return pointers (BLOCK, BLOCK_D) to the first rows of one head of a (B, T, H, D) tensor."""
    stride_b, stride_t, stride_h, stride_d = strides
    # int64 before every product: a stride times an index can pass 2**31
    rows = tl.arange(0, BLOCK).to(tl.int64)[:, None] * stride_t
    columns = tl.arange(0, BLOCK_D).to(tl.int64)[None, :] * stride_d
    return ptr + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h + (rows + columns)


@triton.jit
def load_rows(
    pointers,
    strides,
    start,
    num_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,  # whether the tile may pass the last row
):
    """Return rows start, ..., start + BLOCK - 1 of what `row_pointers` points to; 0 past the last row and column."""
    here = pointers + tl.cast(start, tl.int64) * strides[1]
    rows = start + tl.arange(0, BLOCK)[:, None] < num_rows
    columns = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    if RAGGED and HEAD_DIM != BLOCK_D:
        return tl.load(here, mask=rows & columns, other=0.0)
    elif RAGGED:
        return tl.load(here, mask=rows, other=0.0)
    elif HEAD_DIM != BLOCK_D:
        return tl.load(here, mask=columns, other=0.0)
    else:
        return tl.load(here)


@triton.jit
def store_rows(
    pointers, strides, start, num_rows, tile, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write a tile (BLOCK, BLOCK_D) to where `load_rows` would read it."""
    rows = start + tl.arange(0, BLOCK)[:, None] < num_rows
    columns = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    here = pointers + tl.cast(start, tl.int64) * strides[1]
    tl.store(here, tile.to(pointers.dtype.element_ty), mask=rows & columns)


@triton.jit
def load_bound(bound_ptr, batch, sizes):
    """Return a row's bound on its keys as int32: one that lies beyond them, such as 2^63 - 1, is their end."""
    return tl.minimum(tl.maximum(tl.load(bound_ptr + batch), 0), sizes.num_keys).to(tl.int32)


@triton.jit
def spans_of(i, batch, see, sizes):
    """Return first, stop, shift and prefix_stop of the queries `i`, in the shape of `i`, which may be a number."""
    first = i * 0
    stop = first + sizes.num_keys
    shift = first + (sizes.num_keys - sizes.num_queries)
    prefix_stop = first
    if see.spans is not None:
        rows = see.spans + batch.to(tl.int64) * 4 * sizes.num_queries + i
        inside = i < sizes.num_queries
        first = tl.load(rows, mask=inside, other=0)
        stop = tl.load(rows + sizes.num_queries, mask=inside, other=0)
        shift = tl.load(rows + 2 * sizes.num_queries, mask=inside, other=0)
        prefix_stop = tl.load(rows + 3 * sizes.num_queries, mask=inside, other=0)
    if see.key_start is not None:
        first = tl.maximum(first, load_bound(see.key_start, batch, sizes))
    if see.key_stop is not None:
        stop = tl.minimum(stop, load_bound(see.key_stop, batch, sizes))
    if see.prefix is not None:
        prefix_stop += load_bound(see.prefix, batch, sizes)
    return first, stop, shift, prefix_stop


@triton.jit
def seen_pairs(i, j, batch, spans, see, sizes):
    """Return which pairs of a tile see each other, as `masks.py` says."""
    first, stop, shift, prefix_stop = spans
    seen = j < stop
    if see.spans is not None or see.key_start is not None:
        seen = seen & (j >= first)
    if see.left is not None or see.right is not None:
        distance = j - (i + shift)
        if see.left is None:
            near = distance <= see.right
        elif see.right is None:
            near = distance >= -see.left
        else:
            near = (distance <= see.right) & (distance >= -see.left)
        if see.prefix is not None:
            near = near | (j < prefix_stop)
        seen = seen & near
    if see.segments is not None:
        row = see.segments + batch.to(tl.int64) * sizes.num_queries
        mine = tl.load(row + i, mask=i < sizes.num_queries, other=0)
        theirs = tl.load(row + j, mask=j < sizes.num_keys, other=0)
        seen = seen & (mine == theirs)
    return seen


@triton.jit
def bounded(x):
    """Return tanh(x) with a relative error of a few float32 eps, near 0 too.

    Near 0 by the polynomial of Cephes' tanhf (Moshier), elsewhere by (1 - e) / (1 + e), e = exp(-2 |x|).
    """
    z = x * x
    series = -5.70498872745e-3 * z + 2.06390887954e-2
    series = (series * z - 5.37397155531e-2) * z + 1.33314422036e-1
    series = (series * z - 3.33332819422e-1) * z * x + x
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, series, tl.where(x < 0, -far, far))


@triton.jit
def score_tile(raw, i, j, batch, head, spans, see, terms, sizes, MASKED: tl.constexpr):
    """Return a, unit and t for raw products <q_i, k_j>: a * unit is a_ij of (3) times log2(e), t is t_ij of (2).

    Where nothing but the scale stands between product and score, `a` is the product itself and `unit` the scale in
    float32: the multiplication then joins the subtraction of the maximum in one instruction, and no operand is scaled
    in its low precision. Without a softcap t is `raw`, and of no use.
    """
    t = raw
    if terms.softcap is not None:
        t = bounded(raw * (terms.scale / terms.softcap))  # (2)
        a = t * (terms.softcap * LOG2E)
        unit = 1.0
    elif terms.folds is not None and terms.alibi is None and terms.bias is None:
        a = raw
        unit = terms.scale * LOG2E
    else:
        a = raw * (terms.scale * LOG2E)  # (1)
        unit = 1.0
    if terms.alibi is not None:
        slope = tl.load(terms.alibi + head).to(tl.float32) * LOG2E
        a -= slope * tl.abs(j - (i + spans[2])).to(tl.float32)
    if terms.bias is not None:
        row = terms.bias + batch.to(tl.int64) * terms.bias_b + head.to(tl.int64) * terms.bias_h
        inside = (i < sizes.num_queries) & (j < sizes.num_keys)
        bias = tl.load(row + i.to(tl.int64) * terms.bias_t + j.to(tl.int64) * terms.bias_s, mask=inside, other=0.0)
        a += bias.to(tl.float32) * LOG2E
    if MASKED:
        a = tl.where(seen_pairs(i, j, batch, spans, see, sizes), a, float("-inf"))  # (3)
    return a, unit, t


@triton.jit
def kept_pairs(i, j, first_key, batch, head, drop, sizes):
    """Return keep_ij of (5): the random number of a pair belongs to its place in (B, H, T, S).

    `first_key` is the first of `j`, and a multiple of 8: that many keys of a query share a block of random numbers.
    """
    rows = (batch.to(tl.int64) * sizes.num_heads + head) * sizes.num_queries + i
    seed = tl.load(drop.seed)
    if j.shape[0] == 1:
        return kept_tile(seed, rows, first_key, drop.p, i.shape[0], j.shape[1])
    else:
        return kept_tile_across(seed, rows, first_key, drop.p, i.shape[1], j.shape[0])


@triton.jit
def _interval(i, batch, see, sizes):
    """Return begin, end, near_begin, near_end: i sees keys of [begin, end) only, and all of [near_begin, near_end)."""
    first, stop, shift, prefix_stop = spans_of(i, batch, see, sizes)  # pyright: ignore[reportGeneralTypeIssues]
    begin, end = first, stop
    if see.left is not None:
        begin = tl.maximum(first, i + shift - see.left)
    if see.right is not None:
        end = tl.minimum(stop, i + shift + see.right + 1)
    near_begin, near_end = begin, end
    if see.prefix is not None:
        begin = tl.where(prefix_stop > first, first, begin)
        end = tl.maximum(end, tl.minimum(prefix_stop, stop))
    return begin, end, near_begin, near_end


@triton.jit
def _in_tiles(begin, end, full_begin, full_end, BLOCK: tl.constexpr):
    """Return begin, full_begin, full_end, end, all but the last on bounds of tiles, and in this order or empty.

    The tiles of [begin, min(full_begin, end)) and of [full_end, end) hold hidden pairs, those between hold none.
    """
    begin = tl.maximum(begin, 0) // BLOCK * BLOCK
    full_begin = tl.maximum((tl.maximum(full_begin, 0) + BLOCK - 1) // BLOCK * BLOCK, begin)
    full_end = tl.maximum(tl.maximum(full_end, 0) // BLOCK * BLOCK, full_begin)
    return begin, full_begin, full_end, end


@triton.jit
def key_tiles(start, batch, see, sizes, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return what `_in_tiles` does, for the keys that queries start, ..., start + BLOCK_M - 1 see."""
    last = tl.minimum(start + BLOCK_M, sizes.num_queries) - 1
    if see.spans is None:  # then both ends of the interval move right with the query
        begin, _, _, full_end = _interval(start, batch, see, sizes)  # pyright: ignore[reportGeneralTypeIssues]
        _, end, full_begin, _ = _interval(last, batch, see, sizes)
    else:
        i = tl.minimum(start + tl.arange(0, BLOCK_M), last)
        begins, ends, near_begins, near_ends = _interval(i, batch, see, sizes)  # pyright: ignore[reportGeneralTypeIssues]
        occupied = begins < ends
        begin = tl.min(tl.where(occupied, begins, sizes.num_keys), 0)
        end = tl.max(tl.where(occupied, ends, 0), 0)
        full_begin, full_end = tl.max(near_begins, 0), tl.min(near_ends, 0)
    if see.segments is not None:
        full_begin, full_end = end, end  # a document need not be in one piece
    return _in_tiles(begin, end, full_begin, full_end, BLOCK_N)


@triton.jit
def query_tiles(start, batch, see, sizes, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return what `_in_tiles` does, for the queries that see keys start, ..., start + BLOCK_N - 1."""
    last = tl.minimum(start + BLOCK_N, sizes.num_keys) - 1
    begin, full_begin = start * 0, start * 0
    end, full_end = begin + sizes.num_queries, begin + sizes.num_queries
    if see.key_spans is not None:
        j = tl.minimum(start + tl.arange(0, BLOCK_N), last)
        rows = see.key_spans + batch.to(tl.int64) * 3 * sizes.num_keys + j
        begins, ends = tl.load(rows), tl.load(rows + sizes.num_keys)
        shift = tl.load(rows + 2 * sizes.num_keys)
        near_begins, near_ends = begins, ends
        if see.right is not None:
            near_begins = tl.maximum(begins, j - shift - see.right)
        if see.left is not None:
            near_ends = tl.minimum(ends, j - shift + see.left + 1)
        full_begin, full_end = tl.max(near_begins, 0), tl.min(near_ends, 0)
        if see.prefix is None:
            begins, ends = near_begins, near_ends
        occupied = begins < ends
        begin = tl.min(tl.where(occupied, begins, sizes.num_queries), 0)
        end = tl.max(tl.where(occupied, ends, 0), 0)
    else:
        shift = sizes.num_keys - sizes.num_queries
        if see.right is not None:
            begin, full_begin = start - shift - see.right, last - shift - see.right
        if see.left is not None:
            end = tl.minimum(last - shift + see.left + 1, end)
            full_end = tl.minimum(start - shift + see.left + 1, full_end)
        if see.prefix is not None:
            in_prefix = start < load_bound(see.prefix, batch, sizes)
            begin = tl.where(in_prefix, 0, begin)
            end = tl.where(in_prefix, sizes.num_queries, end)
    if see.key_start is not None:
        key_start = load_bound(see.key_start, batch, sizes)
        end = tl.where(last < key_start, 0, end)
        full_end = tl.where(start < key_start, 0, full_end)
    if see.key_stop is not None:
        key_stop = load_bound(see.key_stop, batch, sizes)
        end = tl.where(start >= key_stop, 0, end)
        full_end = tl.where(last >= key_stop, 0, full_end)
    if see.segments is not None:
        full_begin, full_end = end, end
    return _in_tiles(begin, end, full_begin, full_end, BLOCK_M)
