r"""attention for decoding: one or a few queries against many keys, forward only, split over the keys.

A program of `forward.py` owns queries and walks all their keys: with one query a row that leaves most of a GPU idle,
which in decoding has nothing to do but read keys and values as fast as it can. Here the keys are cut into splits, each
with a program of its own. The sums m, w, o of `forward.py` over a split are moved to the common maximum at the end:

    m = max_s m_s,   w = sum_s w_s * exp(m_s - m),   y = sum_s o_s * exp(m_s - m) / w        (21)

which is (17) and (18) there, for splits in place of tiles. The splits are added in their order: the same bits every
time. The numbers begin in `reference.py`.

The H / Hkv query heads that read one key head become rows of one tile, with their T queries: keys and values are read
once for all of them. Row r is query r // group of head r % group.

Source: Dao et al. (2023), "Flash-Decoding for long-context inference".

Read next: `hopper.py`.
"""

# no `from __future__ import annotations`: PyTorch reads the op's annotations as types
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels.attention import configs, reference
from minillm_kernels.attention.arguments import call_arguments, launched
from minillm_kernels.attention.forward import online_softmax
from minillm_kernels.attention.masks import Masks
from minillm_kernels.attention.scores import load_bound, row_pointers, spans_of
from minillm_kernels.launching import cdiv

MAX_ROWS = 64  # queries of a key head, T * H / Hkv: more fill a GPU without splits
MIN_KEYS = 32  # fewer are not worth a second kernel
_PROGRAMS = 256  # about two for each processor of a large GPU
_MAX_SPLITS = 64


@triton.jit
def _attention_decode_kernel(
    q_ptr,                     # in   (B, T, H, D)
    k_ptr,                     # in   (B, S, Hkv, D)
    v_ptr,                     # in   (B, S, Hkv, D)
    part_o_ptr,                # out  (splits, B * Hkv, T * group, D) float32
    part_m_ptr,                # out  (splits, B * Hkv, T * group) float32, in units of log2(e)
    part_w_ptr,                # out  (splits, B * Hkv, T * group) float32
    q_strides,                 # in elements, as all strides
    k_strides,
    v_strides,
    see,                       # Visibility, without spans
    terms,                     # Terms
    drop,                      # Dropout
    sizes,                     # Sizes
    keys_per_split,            # a multiple of BLOCK_N
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
    BLOCK_M: tl.constexpr,     # power of two >= T * group, and 16 at least
    BLOCK_N: tl.constexpr,     # keys of a tile
):  # fmt: skip
    num_key_heads = sizes.num_heads // sizes.group
    num_rows = sizes.num_queries * sizes.group
    row = tl.program_id(0)
    split = tl.program_id(1)  # the second axis of a grid ends at 65,535
    batch, key_head = row // num_key_heads, row % num_key_heads
    rows = tl.arange(0, BLOCK_M)
    i = tl.minimum(rows // sizes.group, sizes.num_queries - 1)[:, None]
    head = (key_head * sizes.group + rows % sizes.group)[:, None]

    stride_b, stride_t, stride_h, stride_d = q_strides
    columns = tl.arange(0, BLOCK_D)[None, :]
    inside = (rows[:, None] < num_rows) & (columns < HEAD_DIM)
    q_rows = q_ptr + batch.to(tl.int64) * stride_b + i.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    q = tl.load(q_rows + columns.to(tl.int64) * stride_d, mask=inside, other=0.0)
    k_rows = row_pointers(k_ptr, k_strides, batch, key_head, BLOCK_N, BLOCK_D)
    v_rows = row_pointers(v_ptr, v_strides, batch, key_head, BLOCK_N, BLOCK_D)

    # the keys that any query may see: their intervals move right from the first query to the last
    begin = split * keys_per_split
    end = tl.minimum(begin + keys_per_split, sizes.num_keys)
    shift = sizes.num_keys - sizes.num_queries
    if see.key_start is not None:
        begin = tl.maximum(begin, load_bound(see.key_start, batch, sizes) // BLOCK_N * BLOCK_N)
    if see.key_stop is not None:
        end = tl.minimum(end, load_bound(see.key_stop, batch, sizes))
    if see.left is not None and see.prefix is None:
        begin = tl.maximum(begin, tl.maximum(shift - see.left, 0) // BLOCK_N * BLOCK_N)

    spans = spans_of(i, batch, see, sizes)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    w = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m, w, o = online_softmax(
        (m, w, o), q, k_rows, v_rows, k_strides, v_strides, i, batch, head, spans, see, terms, drop, sizes,
        begin, end, HEAD_DIM, BLOCK_D, BLOCK_N, MASKED=True,
    )  # fmt: skip

    part = (tl.cast(split, tl.int64) * tl.num_programs(0) + row) * num_rows + rows
    tl.store(part_m_ptr + part, m, mask=rows < num_rows)
    tl.store(part_w_ptr + part, w, mask=rows < num_rows)
    tl.store(part_o_ptr + part[:, None] * HEAD_DIM + columns, o, mask=inside)


@triton.jit
def _attention_combine_kernel(
    part_o_ptr,                # in   (splits, B * Hkv, T * group, D) float32
    part_m_ptr,                # in   (splits, B * Hkv, T * group) float32, in units of log2(e)
    part_w_ptr,                # in   (splits, B * Hkv, T * group) float32
    y_ptr,                     # out  (B, T, H, D), contiguous
    drop,                      # Dropout
    sizes,                     # Sizes
    num_splits,
    HEAD_DIM: tl.constexpr,    # D
    BLOCK_D: tl.constexpr,     # power of two >= D
):  # fmt: skip
    num_key_heads = sizes.num_heads // sizes.group
    num_rows = sizes.num_queries * sizes.group
    row = tl.program_id(0)  # one row of one key head
    columns = tl.arange(0, BLOCK_D)
    inside = columns < HEAD_DIM
    m = float("-inf")
    for split in range(num_splits):
        m = tl.maximum(m, tl.load(part_m_ptr + tl.cast(split, tl.int64) * tl.num_programs(0) + row))
    m = tl.where(m == float("-inf"), 0.0, m)
    w = 0.0
    o = tl.zeros((BLOCK_D,), tl.float32)
    for split in range(num_splits):
        part = tl.cast(split, tl.int64) * tl.num_programs(0) + row
        factor = tl.exp2(tl.load(part_m_ptr + part) - m)
        w += tl.load(part_w_ptr + part) * factor
        o += tl.load(part_o_ptr + part * HEAD_DIM + columns, mask=inside, other=0.0) * factor
    y = o / tl.where(w == 0.0, 1.0, w)  # (21)
    if drop.seed is not None:
        y *= drop.factor
    key_row, r = row // num_rows, row % num_rows
    batch, key_head = key_row // num_key_heads, key_row % num_key_heads
    i, head = r // sizes.group, key_head * sizes.group + r % sizes.group
    where = (batch.to(tl.int64) * sizes.num_queries + i) * sizes.num_heads + head
    tl.store(y_ptr + where * HEAD_DIM + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


def decodes(q: Tensor, k: Tensor, masks: Masks) -> bool:
    """Return whether a call without gradient is one for the kernels of this file."""
    (_, T, H, _), (S, Hkv) = q.shape, k.shape[1:3]
    alone = masks.segments is None and masks.cu_seqlens_q is None
    return alone and T * (H // Hkv) <= MAX_ROWS and S >= MIN_KEYS and 4 * T <= S


def split_size(num_keys: int, num_rows: int, block_n: int) -> int:
    """Return how many keys a split has, a multiple of `block_n`, for programs of `num_rows` key heads."""
    tiles = cdiv(num_keys, block_n)
    splits = min(_MAX_SPLITS, tiles, max(1, cdiv(_PROGRAMS, num_rows)))
    return cdiv(tiles, splits) * block_n


@torch.library.custom_op("minillm_kernels::attention_decode", mutates_args=())
def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    key_start: Tensor | None,
    key_stop: Tensor | None,
    prefix: Tensor | None,
    seed: Tensor | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """Return y (B, T, H, D); arguments are those of the public function, causality is right = 0."""
    (B, T, H, D), (S, Hkv) = q.shape, k.shape[1:3]
    masks = Masks(window=(left, right), key_start=key_start, key_stop=key_stop, prefix=prefix)
    if not dispatch.launches(q):
        y = reference.attention(q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale)
        return y.contiguous()
    y = torch.empty((B, T, H, D), dtype=q.dtype, device=q.device)
    if not y.numel():
        return y
    call = call_arguments(q, k, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale)
    rows = T * (H // Hkv)

    def run(launch: configs.Launch) -> None:
        keys = split_size(S, B * Hkv, launch.block_n)
        splits = cdiv(S, keys)
        part_o = torch.empty((splits, B * Hkv, rows, D), dtype=torch.float32, device=q.device)
        part_m, part_w = torch.empty((2, splits, B * Hkv, rows), dtype=torch.float32, device=q.device)
        width = configs.padded_width(D)
        launched(_attention_decode_kernel, B * Hkv, splits)(
            q, k, v, part_o, part_m, part_w, q.stride(), k.stride(), v.stride(), *call, keys,
            HEAD_DIM=D, BLOCK_D=width, BLOCK_M=configs.padded_width(rows), BLOCK_N=launch.block_n,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
        launched(_attention_combine_kernel, B * Hkv * rows)(
            part_o, part_m, part_w, y, call.drop, call.sizes, splits, HEAD_DIM=D, BLOCK_D=width, num_warps=2
        )  # fmt: skip

    with torch.cuda.device_of(q):
        configs.run("decode", q, call.heavy, run, (T, S))
    return y


@decode.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)
