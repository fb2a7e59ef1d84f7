r"""rotary in Triton: q and k turned in one launch; the backward pass is the same kernel with sin negated.

Equations: `reference.py`. One program owns a few tokens with all their heads, so that a token's row of the tables is
read once for all heads of q and of k, straight from the tables at its position: no gathered copy of them exists.

    a' = a * cos - b * sin,   b' = a * sin + b * cos                                             (1), (2)
    da = da' * cos + db' * sin,   db = db' * cos - da' * sin                                     (4), (5)

Half-split pairs are loaded as two tiles half a head apart, interleaved ones as one tile whose neighbours are then told
apart in registers: either way a thread loads 16 bytes at a time. The position of a token that is outside of the tables
turns it into NaN instead of reading past their end.

Read next: `../dropout/fused.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels.launching import TRITON_TYPE, cdiv, launch, make_variant, next_power_of_2
from minillm_kernels.rotary import reference
from minillm_kernels.variant import Variant

TILE = 2048  # bytes of either half of the pairs of a tile (tokens, heads, D/2): 16 a thread
THREADS = 128


@triton.jit
def _turn(
    x_ptr,  # in   (N, heads, D), at the program's tokens
    y_ptr,  # out  (N, heads, D), contiguous
    x_offs,  # (BLOCK_N,) of each token
    x_head_stride,
    offs_n,  # (BLOCK_N,)
    mask_n,
    cos,  # (BLOCK_N, 1, BLOCK_D)
    sin,
    num_heads,
    HALF: tl.constexpr,  # D/2
    INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,  # power of two >= D/2
):
    """Turn all heads of the program's tokens, BLOCK_H at a time."""
    for first in range(0, num_heads, BLOCK_H):
        offs_h = first + tl.arange(0, BLOCK_H)
        mask_nh = mask_n[:, None, None] & (offs_h < num_heads)[None, :, None]
        x_rows = x_ptr + x_offs[:, None, None] + (offs_h.to(tl.int64) * x_head_stride)[None, :, None]
        y_rows = y_ptr + (offs_n * num_heads * (2 * HALF))[:, None, None] + (offs_h * (2 * HALF))[None, :, None]
        if INTERLEAVED:
            offs_d = tl.arange(0, 2 * BLOCK_D)[None, None, :]
            mask = mask_nh & (offs_d < 2 * HALF)
            x = tl.load(x_rows + offs_d, mask=mask, other=0.0).to(tl.float32)
            a, b = tl.split(tl.reshape(x, (x.shape[0], BLOCK_H, BLOCK_D, 2)))
            y = tl.join(a * cos - b * sin, a * sin + b * cos)  # (1), (2)
            y = tl.reshape(y, (x.shape[0], BLOCK_H, 2 * BLOCK_D))
            tl.store(y_rows + offs_d, y.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            offs_d = tl.arange(0, BLOCK_D)[None, None, :]
            mask = mask_nh & (offs_d < HALF)
            a = tl.load(x_rows + offs_d, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(x_rows + HALF + offs_d, mask=mask, other=0.0).to(tl.float32)
            tl.store(y_rows + offs_d, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=mask)  # (1)
            tl.store(y_rows + HALF + offs_d, (a * sin + b * cos).to(y_ptr.dtype.element_ty), mask=mask)  # (2)


@triton.jit
def _rotary_kernel(
    q_ptr,  # in   (B, T, H, D)
    k_ptr,  # in   (B, T, Hkv, D)
    cos_ptr,  # in   (P, D/2), contiguous
    sin_ptr,  # in   (P, D/2), contiguous
    positions_ptr,  # in   (B, T) int64, contiguous; None: a token's position is its place in the row
    q_out_ptr,  # out  (B, T, H, D), contiguous
    k_out_ptr,  # out  (B, T, Hkv, D), contiguous
    q_strides,  # of batch, token and head, in elements
    k_strides,
    num_tokens,  # B * T
    length,  # T
    num_positions,  # P
    q_heads,  # H
    k_heads,  # Hkv
    HALF: tl.constexpr,  # D/2, known to the compiler so that it sees which masks start at multiples of 16 bytes
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,  # turn back: the backward pass
    BLOCK_N: tl.constexpr,
    BLOCK_HQ: tl.constexpr,
    BLOCK_HK: tl.constexpr,
    BLOCK_D: tl.constexpr,  # power of two >= D/2
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < num_tokens
    row, place = offs_n // length, offs_n % length
    position = place
    if positions_ptr is not None:
        position = tl.load(positions_ptr + offs_n, mask=mask_n, other=0)
    offs_d = tl.arange(0, BLOCK_D)
    inside = (position >= 0) & (position < num_positions)
    table_offs = tl.where(inside, position, 0)[:, None] * HALF + offs_d[None, :]
    table_mask = inside[:, None] & (offs_d < HALF)[None, :]
    cos = tl.load(cos_ptr + table_offs, mask=table_mask, other=float("nan")).to(tl.float32)
    sin = tl.load(sin_ptr + table_offs, mask=table_mask, other=float("nan")).to(tl.float32)
    if INVERSE:
        sin = -sin  # (4), (5)
    cos, sin = cos[:, None, :], sin[:, None, :]
    q_offs = row * q_strides[0] + place * q_strides[1]
    k_offs = row * k_strides[0] + place * k_strides[1]
    _turn(
        q_ptr, q_out_ptr, q_offs, q_strides[2], offs_n, mask_n, cos, sin, q_heads, HALF, INTERLEAVED, BLOCK_HQ, BLOCK_D
    )
    _turn(
        k_ptr, k_out_ptr, k_offs, k_strides[2], offs_n, mask_n, cos, sin, k_heads, HALF, INTERLEAVED, BLOCK_HK, BLOCK_D
    )


def _blocks(q_heads: int, k_heads: int, half: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the tile: all heads of as many tokens as fill it, or part of the heads where they do not fit."""
    block_d, pairs = next_power_of_2(half), TILE // dtype.itemsize
    limit = max(1, pairs // block_d)
    block_q, block_k = (min(next_power_of_2(heads), limit) for heads in (q_heads, k_heads))
    tokens = max(1, pairs // (max(block_q, block_k) * block_d))
    return {"BLOCK_N": min(tokens, 64), "BLOCK_HQ": block_q, "BLOCK_HK": block_k, "BLOCK_D": block_d}


@torch.library.custom_op("minillm_kernels::rotary", mutates_args=())
def _op(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return q and k turned, or turned back."""
    B, T, H, D = q.shape
    Hkv = k.shape[2]
    if not dispatch.launches(q):
        rows = (cos[None, :T], sin[None, :T]) if positions is None else (cos[positions], sin[positions])
        cos, sin = (table[:, :, None, :] for table in rows)
        sin = -sin if inverse else sin
        return reference.rotate(q, cos, sin, interleaved), reference.rotate(k, cos, sin, interleaved)
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if not B * T * D:
        return q_out, k_out
    blocks = _blocks(H, Hkv, D // 2, q.dtype)
    launch(
        _rotary_kernel,
        (cdiv(B * T, blocks["BLOCK_N"]),),
        q,
        k,
        cos.contiguous(),
        sin.contiguous(),
        positions if positions is None else positions.contiguous(),
        q_out,
        k_out,
        q.stride()[:3],
        k.stride()[:3],
        B * T,
        T,
        cos.shape[0],
        H,
        Hkv,
        HALF=D // 2,
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        **blocks,
        threads=THREADS,
    )
    return q_out, k_out


@_op.register_fake
def _(q, k, cos, sin, positions, interleaved, inverse):
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return q_out, torch.empty(k.shape, dtype=k.dtype, device=k.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, positions, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin, positions)


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    turned = _op(dq, dk, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return *turned, None, None, None, None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Return q and k rotated; arguments as in the public function."""
    return _op(q, k, cos.detach(), sin.detach(), positions, interleaved, False)


def variants() -> Iterator[Variant]:
    """Yield usual widths of heads, with 12 of them, and the switches at width 64; float16 compiles as bfloat16 does."""
    for warp in (32, 64):
        for dtype in (torch.bfloat16, torch.float32):
            for width in (64, 80, 128):
                for k_heads in (12, 2):
                    yield _variant(dtype, width, k_heads, False, False, False, warp)
            for interleaved, has_positions, inverse in itertools.product((False, True), repeat=3):
                if interleaved or has_positions or inverse:
                    yield _variant(dtype, 64, 12, interleaved, has_positions, inverse, warp)


def _variant(
    dtype: torch.dtype, width: int, k_heads: int, interleaved: bool, has_positions: bool, inverse: bool, warp: int
) -> Variant:
    switches = {"INTERLEAVED": interleaved, "INVERSE": inverse}
    given = {"INTERLEAVED": interleaved, "HAS_POSITIONS": has_positions, "INVERSE": inverse}
    names = [name for name, on in given.items() if on]
    strides = ("i32", "i32", "i32")
    types: dict[str, Any] = {p: TRITON_TYPE[dtype] for p in ("q_ptr", "k_ptr", "q_out_ptr", "k_out_ptr")}
    types |= {"cos_ptr": "*fp32", "sin_ptr": "*fp32", "positions_ptr": "*i64"}
    types |= {"q_strides": strides, "k_strides": strides}
    none = {} if has_positions else {"positions_ptr": None}
    return make_variant(
        "rotary",
        " ".join((str(dtype), f"D={width}", f"Hkv={k_heads}", *names)),
        _rotary_kernel,
        types,
        {"HALF": width // 2, **switches, **_blocks(12, k_heads, width // 2, dtype), **none},
        threads=THREADS,
        warp=warp,
    )
