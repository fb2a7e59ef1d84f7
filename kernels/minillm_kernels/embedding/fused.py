r"""embedding in Triton: a gather, and a deterministic backward pass without atomics.

    y[n, c] = weight[tokens[n], c]                                                               (1)
    dweight[v, c] = sum over n with tokens[n] = v of dy[n, c]                                    (2)

Backward. A stable sort of the tokens puts the places n of each v side by side, in order: (2) is the sum of one segment
of that order, a program per v adds it up in float32, and the same input gives the same bits. A text's commonest token
would keep one program busy long after all others ended, so that the sum has two levels: a segment of more than
PIECE places is cut into pieces, each summed by a program of its own, and the program of v adds the pieces. 100,000
equal tokens of width 1024 in 16 bits are 391 pieces of 256 places, 128 steps of two rows each, and then 196 steps over
the pieces.

How many pieces there are is known on the device only. Waiting for it is not needed: a segment of n > PIECE places has
less than n / PIECE + 1 < 2 n / PIECE pieces, so that all N places have less than 2 N / PIECE, and programs beyond the
last piece return at once.

Read next: `../launching.py`, then `../attention/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.embedding import reference
from minillm_kernels.launching import (
    DTYPES,
    TRITON_TYPE,
    cdiv,
    launch,
    make_variant,
    next_power_of_2,
    rows_of,
)
from minillm_kernels.variant import Variant

TILE = 2048  # elements of the gather's tile: 16 a thread
MAX_BLOCK_C = 1024
THREADS = 128
PIECE = 256  # places
# Elements of the sum's tile: 2 rows of 1024. Both passes of 65,536 tokens of width 768 take 213 us beside 238 with 4096
# (H200, bfloat16, 2026-11-28, Triton 3.6). Of 32 bits twice as many: with 2048 sm_100 spills a register.
SUM_TILE = 2048


@triton.jit(debug=True)  # device_assert is compiled for it; all else is in int64, so that no other check comes with it
def _embedding_gather_kernel(
    tokens_ptr,  # in   (N,) int64 or int32
    weight_ptr,  # in   (V, C)
    y_ptr,  # out  (N, C), contiguous
    weight_row_stride,  # in elements
    num_tokens,  # N
    num_rows,  # V
    num_cols,  # C
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_n = offs_n < num_tokens
    tokens = tl.load(tokens_ptr + offs_n, mask=mask_n, other=0).to(tl.int64)
    inside = (tokens >= 0) & (tokens < num_rows)
    tl.device_assert(inside, "embedding: a token outside of the table")
    mask = (mask_n & inside)[:, None] & (offs_c < num_cols)[None, :]
    y = tl.load(weight_ptr + tokens[:, None] * weight_row_stride + offs_c[None, :], mask=mask, other=0.0)
    tl.store(y_ptr + offs_n[:, None] * num_cols + offs_c[None, :], y, mask=mask)  # (1)


@triton.jit
def _sum_of_rows(
    row_ptr,  # (..., C)
    row_stride,
    order_ptr,  # with GATHER: which row stands at each place
    start,
    stop,
    offs_c,
    mask_c,
    GATHER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return the sum (BLOCK_C,) of the rows at places start .. stop-1, in float32."""
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(start, stop, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        mask_n = place < stop
        rows = tl.load(order_ptr + place, mask=mask_n, other=0) if GATHER else place
        mask = mask_n[:, None] & mask_c[None, :]
        total += tl.load(row_ptr + rows[:, None] * row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.sum(total, axis=0)


@triton.jit
def _embedding_piece_kernel(
    dy_ptr,  # in   (N, C)
    order_ptr,  # in   (N,) int64: places of dy, sorted by token
    starts_ptr,  # in   (V + 1,) int64: where the segment of each v starts in the order
    pieces_stop_ptr,  # in   (V,) int64: pieces of rows 0 .. v
    owner_ptr,  # in   (pieces,) int64: the v of each piece; V or more: there is no such piece
    partial_ptr,  # out  (pieces, C) float32
    dy_row_stride,  # in elements
    num_rows,  # V
    num_cols,  # C
    PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    owner = tl.load(owner_ptr + piece)
    if owner < num_rows:
        offs_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        mask_c = offs_c < num_cols
        start, stop = tl.load(starts_ptr + owner), tl.load(starts_ptr + owner + 1)
        first_piece = tl.load(pieces_stop_ptr + owner) - tl.cdiv(stop - start, PIECE)
        start += (piece - first_piece) * PIECE
        stop = tl.minimum(stop, start + PIECE)
        total = _sum_of_rows(dy_ptr, dy_row_stride, order_ptr, start, stop, offs_c, mask_c, True, BLOCK_N, BLOCK_C)
        tl.store(partial_ptr + piece * num_cols + offs_c, total, mask=mask_c)


@triton.jit
def _embedding_row_kernel(
    dy_ptr,  # in   (N, C)
    order_ptr,  # in   (N,) int64
    starts_ptr,  # in   (V + 1,) int64
    pieces_stop_ptr,  # in   (V,) int64
    partial_ptr,  # in   (pieces, C) float32
    dweight_ptr,  # out  (V, C), contiguous: every row, those of no token too
    dy_row_stride,  # in elements
    num_cols,  # C
    PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_cols
    start, stop = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    if stop - start <= PIECE:
        total = _sum_of_rows(dy_ptr, dy_row_stride, order_ptr, start, stop, offs_c, mask_c, True, BLOCK_N, BLOCK_C)
    else:
        last = tl.load(pieces_stop_ptr + row)
        first = last - tl.cdiv(stop - start, PIECE)
        total = _sum_of_rows(partial_ptr, num_cols, order_ptr, first, last, offs_c, mask_c, False, BLOCK_N, BLOCK_C)
    tl.store(dweight_ptr + row * num_cols + offs_c, total.to(dweight_ptr.dtype.element_ty), mask=mask_c)  # (2)


def _width(num_cols: int) -> int:
    return min(next_power_of_2(num_cols), MAX_BLOCK_C)


def _height(elements: int, width: int) -> int:
    return min(elements // width, 64)


def _sum_height(dtype: torch.dtype, width: int) -> int:
    return _height(SUM_TILE if dtype.itemsize == 2 else 2 * SUM_TILE, width)


def forward(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return y of (1), (..., C)."""
    y = torch.empty(*tokens.shape, weight.shape[1], dtype=weight.dtype, device=weight.device)
    if not y.numel():
        return y
    (V, C), N = weight.shape, tokens.numel()
    checks.indices("tokens", tokens, V, "the rows of the table", IndexError)  # compiled code has not looked
    rows, block_c = rows_of(weight), _width(C)
    block_n = _height(TILE, block_c)
    launch(
        _embedding_gather_kernel,
        (cdiv(N, block_n), cdiv(C, block_c)),
        tokens.contiguous(),
        rows,
        y,
        rows.stride(0),
        N,
        V,
        C,
        BLOCK_N=block_n,
        BLOCK_C=block_c,
        threads=THREADS,
    )
    return y


def backward(tokens: Tensor, dy: Tensor, num_rows: int) -> Tensor:
    """Return dweight of (2), (V, C) in the dtype of dy."""
    V, C = num_rows, dy.shape[-1]
    dweight = torch.empty(V, C, dtype=dy.dtype, device=dy.device)
    if not dy.numel():
        return dweight.zero_()
    dy_rows, N = rows_of(dy), tokens.numel()
    ordered, order = torch.sort(tokens.reshape(-1), stable=True)  # each (N,)
    starts = torch.searchsorted(ordered, torch.arange(V + 1, dtype=ordered.dtype, device=ordered.device))  # (V + 1,)
    count = starts.diff()
    pieces_stop = torch.where(count > PIECE, (count + PIECE - 1) // PIECE, 0).cumsum(0)  # (V,)
    num_pieces = 2 * N // PIECE if N > PIECE else 0  # at most
    partial = torch.empty(num_pieces, C, dtype=torch.float32, device=dy.device)
    block_c = _width(C)
    sizes = {"PIECE": PIECE, "BLOCK_N": _sum_height(dy.dtype, block_c), "BLOCK_C": block_c, "threads": THREADS}
    if num_pieces:
        owner = torch.searchsorted(pieces_stop, torch.arange(num_pieces, device=dy.device), right=True)
        launch(
            _embedding_piece_kernel,
            (num_pieces, cdiv(C, block_c)),
            dy_rows,
            order,
            starts,
            pieces_stop,
            owner,
            partial,
            dy_rows.stride(0),
            V,
            C,
            **sizes,
        )
    launch(
        _embedding_row_kernel,
        (V, cdiv(C, block_c)),
        dy_rows,
        order,
        starts,
        pieces_stop,
        partial,
        dweight,
        dy_rows.stride(0),
        C,
        **sizes,
    )
    return dweight


@torch.library.custom_op("minillm_kernels::embedding_forward", mutates_args=())
def _forward(tokens: Tensor, weight: Tensor) -> Tensor:
    return forward(tokens, weight) if dispatch.launches(weight) else reference.embedding(tokens, weight).contiguous()


@torch.library.custom_op("minillm_kernels::embedding_backward", mutates_args=())
def _backward(tokens: Tensor, dy: Tensor, num_rows: int) -> Tensor:
    if dispatch.launches(dy):
        return backward(tokens, dy, num_rows)
    dweight = torch.zeros(num_rows, dy.shape[-1], dtype=torch.float32, device=dy.device)
    return dweight.index_add_(0, tokens.reshape(-1), dy.reshape(-1, dy.shape[-1]).float()).to(dy.dtype)


@_forward.register_fake
def _(tokens: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(*tokens.shape, weight.shape[1], dtype=weight.dtype, device=weight.device)


@_backward.register_fake
def _(tokens: Tensor, dy: Tensor, num_rows: int) -> Tensor:
    return torch.empty(num_rows, dy.shape[-1], dtype=dy.dtype, device=dy.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, weight = inputs
    ctx.save_for_backward(tokens)
    ctx.num_rows = weight.shape[0]


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return None, _backward(*ctx.saved_tensors, dy, ctx.num_rows)


_forward.register_autograd(_differentiate, setup_context=_keep)


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return the rows; arguments as in the public function."""
    return _forward(tokens, weight)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled, for the widest tile and for a narrow one."""
    for warp in (32, 64):
        for dtype in DTYPES:
            for width in (128, 1024):
                activations = TRITON_TYPE[dtype]
                types = {p: activations for p in ("weight_ptr", "y_ptr", "dy_ptr", "dweight_ptr")}
                types |= {p: "*i64" for p in ("tokens_ptr", "order_ptr", "starts_ptr", "pieces_stop_ptr", "owner_ptr")}
                types["partial_ptr"] = "*fp32"
                gather = {"BLOCK_N": _height(TILE, width), "BLOCK_C": width}
                sums = {"PIECE": PIECE, "BLOCK_N": _sum_height(dtype, width), "BLOCK_C": width}
                for name, kernel, blocks in (
                    ("forward", _embedding_gather_kernel, gather),
                    ("backward, pieces", _embedding_piece_kernel, sums),
                    ("backward, rows", _embedding_row_kernel, sums),
                ):
                    full = f"{name} {dtype} C={width}"
                    yield make_variant("embedding", full, kernel, types, blocks, threads=THREADS, warp=warp)
