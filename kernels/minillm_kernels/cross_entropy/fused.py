r"""The `fused` backend of cross_entropy: Triton kernels. Equation numbers (1) to (9) are those of `reference.py`.

Forward. One program owns BLOCK_R rows and walks over their classes in tiles of BLOCK_V, with the largest logit so far m
and the sum so far s; (2) holds for the tiles seen, whatever m is, and a larger one rescales the sum:

    m' = max(m, max_v l_v)                                      (10)
    s' = s * exp(m - m') + sum_v exp(l_v - m')                  (11)  lse = m + log(s) at the end

So the logits are read once. (10) and (11) hold for any part of a row, and parts are put together at the end:

    m = max_i m_i,   s = sum_i s_i * exp(m_i - m)               (12)

A long row whose logits are neighbours (WIDE: BLOCK_R = 1 and a column stride of 1) is read 16 bytes at a time, in
groups of ALIGN logits. 2 V bytes need not be a multiple of 16 (GPT-2's V is 50257), so a row starts anywhere between
two boundaries, and is cut in three by its address:

    | head: what lies before the first boundary | whole: a multiple of ALIGN | rest: what is left |   head, rest < ALIGN

Tiles are laid over the middle; a mask there takes or leaves a group as a whole, which keeps accesses wide. Head and
rest together are one small tile of 2 ALIGN. A group lies in the registers of one lane, which keeps m and s of (10) and
(11) for itself: a tile needs no other lane, and exponentials are 1 + 1 / ALIGN a logit. (12) joins the lanes.

Otherwise (several short rows a program, or logits with a stride) s and the sum of l stay one number per lane until the
end, and each tile needs one reduction across lanes, that of (10).

Backward. With lse kept, (7) to (9) need nothing but the logit itself: every tile is a program of its own, logits are
read once and gradients written once. It is WIDE only where, besides, each row of x is as far past a boundary as its row
of dx, so that one cut serves both; the last tile's program has head and rest. Nothing is written into the logits, and
the upstream gradient may be any number: `.backward()` twice is right.

A row that is ignored reads no logits. A target outside of [0, V), which is not looked for on a GPU unless
MINILLM_CHECKED=1 is set, makes its loss and its gradient NaN, and reads nothing outside of the row.

Read next: `../linear_cross_entropy/fused.py`, which does both in one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import dispatch, launching
from minillm_kernels.cross_entropy import reference
from minillm_kernels.cross_entropy.targets import check_targets
from minillm_kernels.exponential import exponential
from minillm_kernels.variant import Variant


@triton.jit
def capped(x, softcap, HAS_SOFTCAP: tl.constexpr):
    """Return l by (1).

    tanh |y| = (1 - e) / (1 + e) with e = exp(-2 |y|) <= 1 never overflows, and is off by an eps of 1, so l by one of c.
    """
    if HAS_SOFTCAP:
        e = exponential(-2.0 / softcap * tl.abs(x))
        size = softcap * (1.0 - e) / (1.0 + e)
        x = tl.where(x < 0, -size, size)
    return x


@triton.jit
def _finite(m):
    """Return the largest logit, or 0 where there is none yet that is not -inf: -inf - -inf would be NaN."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def _add_tile(m, s, total, x, mask_v, softcap, HAS_SOFTCAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr):
    """Return m, s and the sum of l with one more tile x (BLOCK_R, BLOCK_V)."""
    l = capped(x, softcap, HAS_SOFTCAP)  # noqa: E741
    if HAS_SMOOTHING:
        total += l  # what no mask lets through was loaded as 0, which (1) leaves as it is
    l = tl.where(mask_v, l, -float("inf"))  # noqa: E741
    m_new = tl.maximum(m, tl.max(l, axis=1))  # (10), (BLOCK_R,)
    finite = _finite(m_new)
    s = s * exponential(m - finite)[:, None] + exponential(l - finite[:, None])  # (11), each lane its own
    return m_new, s, total


@triton.jit
def lse_and_sum(
    row_ptr,  # in   (BLOCK_R, 1) pointers to the rows' first logits
    x_col_stride,  # in elements
    kept,  # (BLOCK_R,), rows that count; the others are not read
    num_cols,  # V; 0: no row counts
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Return lse (BLOCK_R,) by (2), 0 where not kept, and, with HAS_SMOOTHING, the sum of l (BLOCK_R,)."""
    m = tl.full((BLOCK_R,), -float("inf"), tl.float32)
    s = tl.zeros((BLOCK_R, BLOCK_V), tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_V), tl.float32)
    offs_v = tl.arange(0, BLOCK_V)[None, :]  # (1, BLOCK_V)
    num_full = num_cols // BLOCK_V * BLOCK_V
    for start in range(0, num_full, BLOCK_V):  # whole tiles without a mask along V, which would keep loads narrow
        tile = row_ptr + (start + offs_v).to(tl.int64) * x_col_stride
        x = tl.load(tile, mask=kept[:, None], other=0.0).to(tl.float32)
        m, s, total = _add_tile(m, s, total, x, kept[:, None], softcap, HAS_SOFTCAP, HAS_SMOOTHING)
    if num_full < num_cols:
        mask = kept[:, None] & (num_full + offs_v < num_cols)
        tile = row_ptr + (num_full + offs_v).to(tl.int64) * x_col_stride
        x = tl.load(tile, mask=mask, other=0.0).to(tl.float32)
        m, s, total = _add_tile(m, s, total, x, mask, softcap, HAS_SOFTCAP, HAS_SMOOTHING)
    s_row = tl.where(kept, tl.sum(s, axis=1), 1.0)  # log(0) where nothing was read
    return tl.where(kept, m + tl.log(s_row), 0.0), tl.sum(total, axis=1)


@triton.jit
def cut(row_ptr, num_cols, ALIGN: tl.constexpr):
    """Return head and whole of the row at an address, in logits."""
    past = row_ptr.to(tl.int64) // (16 // ALIGN) % ALIGN  # the boundary before
    head = tl.minimum(((ALIGN - past) % ALIGN).to(tl.int32), num_cols)
    return head, (num_cols - head) // ALIGN * ALIGN


@triton.jit
def groups_at(row_ptr, head):
    """Return the pointer to the groups of a row that is cut, as one that the compiler takes for aligned.

    Where head is not up to a boundary, since the row ends before it, there is no group.
    """
    return tl.multiple_of(row_ptr + head, 16)


@triton.jit
def _add_groups(m, s, total, x, mask_g, softcap, HAS_SOFTCAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr):
    """Return m and s (BLOCK_V / ALIGN,) and the sum of l (BLOCK_V / ALIGN, ALIGN) with one more tile, x."""
    l = capped(x, softcap, HAS_SOFTCAP)  # noqa: E741
    if HAS_SMOOTHING:
        total += l  # as in _add_tile; Triton 3.7 breaks off on tl.sum(l, axis=1) of a float32 tile
    l = tl.where(mask_g, l, -float("inf"))  # noqa: E741
    m_new = tl.maximum(m, tl.max(l, axis=1))  # (10)
    finite = _finite(m_new)
    s = s * exponential(m - finite) + tl.sum(exponential(l - finite[:, None]), axis=1)  # (11)
    return m_new, s, total


@triton.jit
def lse_and_sum_of_row(
    row_ptr,  # in   pointer to the row's first logit; the others are its neighbours
    num_cols,  # V; 0: the row does not count
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Return lse by (2) and, with HAS_SMOOTHING, the sum of l; both are numbers, 0 where the row does not count."""
    ALIGN: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    head, whole = cut(row_ptr, num_cols, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    offs_j = tl.arange(0, 2 * ALIGN)
    mask_j = offs_j < num_cols - whole
    ends = row_ptr + tl.where(offs_j < head, offs_j, offs_j + whole)  # asked for first: the tiles hide that they wait
    l_ends = capped(tl.load(ends, mask=mask_j, other=0.0).to(tl.float32), softcap, HAS_SOFTCAP)

    m = tl.full((BLOCK_V // ALIGN,), -float("inf"), tl.float32)
    s = tl.zeros((BLOCK_V // ALIGN,), tl.float32)
    total = tl.zeros((BLOCK_V // ALIGN, ALIGN), tl.float32)
    offs_g = tl.arange(0, BLOCK_V // ALIGN)[:, None] * ALIGN  # (BLOCK_V / ALIGN, 1)
    tile = groups_at(row_ptr, head) + (offs_g + tl.arange(0, ALIGN)[None, :])  # (BLOCK_V / ALIGN, ALIGN)
    everything = tl.full((BLOCK_V // ALIGN, 1), True, tl.int1)
    num_full = whole // BLOCK_V * BLOCK_V
    for start in range(0, num_full, BLOCK_V):
        x = tl.load(tile + start).to(tl.float32)
        m, s, total = _add_groups(m, s, total, x, everything, softcap, HAS_SOFTCAP, HAS_SMOOTHING)
    if num_full < whole:
        mask_g = num_full + offs_g < whole
        x = tl.load(tile + num_full, mask=mask_g, other=0.0).to(tl.float32)
        m, s, total = _add_groups(m, s, total, x, mask_g, softcap, HAS_SOFTCAP, HAS_SMOOTHING)

    total_row = tl.sum(tl.sum(total, axis=1), axis=0) + tl.sum(l_ends, axis=0)
    l_ends = tl.where(mask_j, l_ends, -float("inf"))
    m_row = tl.maximum(tl.max(m, axis=0), tl.max(l_ends, axis=0))
    finite = _finite(m_row)
    s_row = tl.sum(s * exponential(m - finite), axis=0) + tl.sum(exponential(l_ends - finite), axis=0)  # (12)
    s_row = tl.where(num_cols > 0, s_row, 1.0)  # log(0) where nothing was read
    return tl.where(num_cols > 0, m_row + tl.log(s_row), 0.0), total_row


@triton.jit
def loss_of_row(lse, l_t, total, num_cols, smoothing, z_loss, HAS_SMOOTHING: tl.constexpr):
    """Return the losses (BLOCK_R,) by (5)."""
    loss = lse - (1.0 - smoothing) * l_t + z_loss * lse * lse
    if HAS_SMOOTHING:
        loss -= smoothing * (total / num_cols)
    return loss


@triton.jit
def gradient_of_tile(
    x,  # (BLOCK_R, BLOCK_V) logits
    is_target,  # (BLOCK_R, BLOCK_V)
    lse,  # (BLOCK_R, 1)
    g,  # (BLOCK_R, 1) upstream gradients
    num_cols,
    smoothing,
    z_loss,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
):
    """Return dx (BLOCK_R, BLOCK_V) by (9)."""
    l = capped(x, softcap, HAS_SOFTCAP)  # noqa: E741
    p = exponential(l - lse)  # (3)
    share = smoothing / num_cols
    q = tl.where(is_target, 1.0 - smoothing + share, share)  # (4)
    dx = g * (p * (1.0 + 2.0 * z_loss * lse) - q)  # (7)
    if HAS_SOFTCAP:
        ratio = l / softcap
        dx *= 1.0 - ratio * ratio  # (8)
    return dx


@triton.jit
def write_gradient_of_groups(
    x_ptr,  # in   pointer to the row's first logit
    dx_ptr,  # out  pointer to its gradient, in the same place between two boundaries of 16 bytes; may be x_ptr
    start,  # of the tile, counted from the first group
    kept,  # whether the row counts; else it is not read
    target,
    lse,
    g,  # upstream gradient: 0 where the row does not count, NaN where its target is none
    num_cols,
    smoothing,
    z_loss,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the gradients of one tile of a row that is cut."""
    ALIGN: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    head, whole = cut(x_ptr, num_cols, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    offs_g = start + tl.arange(0, BLOCK_V // ALIGN)[:, None] * ALIGN  # (BLOCK_V / ALIGN, 1)
    mask_g = offs_g < whole
    offs_v = offs_g + tl.arange(0, ALIGN)[None, :]  # (BLOCK_V / ALIGN, ALIGN)
    x = tl.load(groups_at(x_ptr, head) + offs_v, mask=mask_g & kept, other=0.0).to(tl.float32)
    is_target = offs_v == (target - head).to(tl.int32)  # where an int32 does not hold it, g is NaN
    dx = gradient_of_tile(x, is_target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP)
    tl.store(groups_at(dx_ptr, head) + offs_v, dx, mask=mask_g)


@triton.jit
def write_gradient_of_ends(
    x_ptr, dx_ptr, kept, target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP: tl.constexpr
):
    """Write the gradients of the head and the rest of a row that is cut; arguments as above."""
    ALIGN: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    head, whole = cut(x_ptr, num_cols, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    offs_j = tl.arange(0, 2 * ALIGN)
    mask_j = offs_j < num_cols - whole
    offs_v = tl.where(offs_j < head, offs_j, offs_j + whole)
    x = tl.load(x_ptr + offs_v, mask=mask_j & kept, other=0.0).to(tl.float32)
    dx = gradient_of_tile(x, offs_v == target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP)
    tl.store(dx_ptr + offs_v, dx, mask=mask_j)


@triton.jit
def _cross_entropy_forward_kernel(
    x_ptr,  # in   (R, V) logits
    targets_ptr,  # in   (R,) int64
    losses_ptr,  # out  (R,) float32
    lse_ptr,  # out  (R,) float32, kept for the backward pass
    x_row_stride,  # in elements
    x_col_stride,
    num_rows,  # R
    num_cols,  # V
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    WIDE: tl.constexpr,  # BLOCK_R and x_col_stride are 1
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # int64: row * stride can pass 2**31
    mask_r = rows < num_rows
    target = tl.load(targets_ptr + rows, mask=mask_r, other=0)  # (BLOCK_R,)
    kept = mask_r & (target != ignore_index)
    inside = (target >= 0) & (target < num_cols)
    row_ptr = x_ptr + rows * x_row_stride
    x_t = tl.load(row_ptr + target * x_col_stride, mask=kept & inside, other=float("nan")).to(tl.float32)
    wanted = tl.max(kept.to(tl.int32), axis=0) * num_cols  # 0 where no row counts: no tile is visited
    if WIDE:
        x_row = x_ptr + tl.program_id(0).to(tl.int64) * x_row_stride
        lse, total = lse_and_sum_of_row(x_row, wanted, softcap, HAS_SOFTCAP, HAS_SMOOTHING, BLOCK_V)
    else:
        lse, total = lse_and_sum(
            row_ptr[:, None], x_col_stride, kept, wanted, softcap, HAS_SOFTCAP, HAS_SMOOTHING, BLOCK_R, BLOCK_V
        )
    l_t = tl.where(inside, capped(x_t, softcap, HAS_SOFTCAP), float("nan"))
    losses = loss_of_row(lse, l_t, total, num_cols, smoothing, z_loss, HAS_SMOOTHING)
    tl.store(losses_ptr + rows, tl.where(kept, losses, 0.0), mask=mask_r)
    tl.store(lse_ptr + rows, lse, mask=mask_r)


@triton.jit
def _cross_entropy_backward_kernel(
    x_ptr,  # in   (R, V) logits
    targets_ptr,  # in   (R,) int64
    lse_ptr,  # in   (R,) float32
    g_ptr,  # in   (R,) float32, upstream gradients of the losses
    dx_ptr,  # out  (R, V), contiguous
    x_row_stride,  # in elements
    x_col_stride,
    num_rows,  # R
    num_cols,  # V
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    WIDE: tl.constexpr,  # BLOCK_R and x_col_stride are 1, and rows of x and dx lie alike
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    start = tl.program_id(1) * BLOCK_V
    if WIDE:
        row = tl.program_id(0).to(tl.int64)  # int64: row * stride can pass 2**31
        target = tl.load(targets_ptr + row)
        kept = target != ignore_index
        lse = tl.load(lse_ptr + row, mask=kept, other=0.0)
        g = tl.load(g_ptr + row, mask=kept, other=0.0)
        g = tl.where(kept & ((target < 0) | (target >= num_cols)), float("nan"), g)
        x_row, dx_row = x_ptr + row * x_row_stride, dx_ptr + row * num_cols
        write_gradient_of_groups(
            x_row, dx_row, start, kept, target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP, BLOCK_V
        )
        if start + BLOCK_V >= num_cols:  # the last tile's program
            write_gradient_of_ends(
                x_row, dx_row, kept, target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP
            )
    else:
        rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # int64: row * stride can pass 2**31
        mask_r = rows < num_rows
        target = tl.load(targets_ptr + rows, mask=mask_r, other=0)  # (BLOCK_R,)
        kept = mask_r & (target != ignore_index)
        lse = tl.load(lse_ptr + rows, mask=kept, other=0.0)
        g = tl.load(g_ptr + rows, mask=kept, other=0.0)
        g = tl.where((target >= 0) & (target < num_cols), g, float("nan"))
        offs_v = start + tl.arange(0, BLOCK_V)[None, :]  # (1, BLOCK_V)
        kept = kept[:, None]
        x_tile = x_ptr + rows[:, None] * x_row_stride + offs_v.to(tl.int64) * x_col_stride
        dx_tile = dx_ptr + rows[:, None] * num_cols + offs_v
        is_target = offs_v == target[:, None]
        if start + BLOCK_V <= num_cols:  # a whole tile without a mask along V, which would keep loads narrow
            x = tl.load(x_tile, mask=kept, other=0.0).to(tl.float32)
            dx = gradient_of_tile(
                x, is_target, lse[:, None], g[:, None], num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP
            )
            tl.store(dx_tile, tl.where(kept, dx, 0.0), mask=mask_r[:, None])
        else:
            mask_v = offs_v < num_cols
            x = tl.load(x_tile, mask=kept & mask_v, other=0.0).to(tl.float32)
            dx = gradient_of_tile(
                x, is_target, lse[:, None], g[:, None], num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP
            )
            tl.store(dx_tile, tl.where(kept, dx, 0.0), mask=mask_r[:, None] & mask_v)


Table = tuple[tuple[int, tuple[int, int, int]], ...]

# Largest V -> BLOCK_R, BLOCK_V, num_warps; several rows a program where rows are short. 16 numbers a lane keep enough
# bytes on their way, and 8 do where each has 4 bytes; with a cap more than 8 do not fit into the registers where rows
# are short, nor more than 4 where many are in a program. Compiled for sm_90, each entry for long rows takes 32
# registers without smoothing, so that 64 warps are resident. Few warps a program let more rows be at work at once, and
# a small tile leaves less of the last one empty; but backward every tile is a program.
LAUNCHES: dict[int, Table] = {
    16: ((128, (16, 128, 4)), (1024, (2, 1024, 4)), (2**31, (1, 2048, 4))),
    8: ((128, (4, 128, 4)), (1024, (1, 1024, 4)), (2**31, (1, 2048, 8))),
}


def launches(itemsize: int, has_softcap: bool) -> Table:
    """Return the part of LAUNCHES for logits of that many bytes."""
    return LAUNCHES[8 if itemsize == 4 or has_softcap else 16]


def launch_for(
    x: Tensor, softcap: float | None, launches: Callable[[int, bool], Table] = launches
) -> tuple[int, int, int]:
    """Return BLOCK_R, BLOCK_V and num_warps for logits (R, V).

    >>> launch_for(torch.empty(0, 65), None), launch_for(torch.empty(0, 50257).half(), None)
    ((4, 128, 4), (1, 2048, 4))
    """
    table = launches(x.dtype.itemsize, softcap is not None)
    return next(launch for largest, launch in table if x.shape[1] <= largest)


def forward(x: Tensor, targets: Tensor, options: reference.Options) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel: losses (R,) and lse (R,), float32, of logits (R, V) with any strides."""
    ignore_index, smoothing, z_loss, softcap = options
    R, V = x.shape
    losses = x.new_empty(R, dtype=torch.float32)
    lse = torch.empty_like(losses)
    if not R:
        return losses, lse
    BLOCK_R, BLOCK_V, num_warps = launch_for(x, softcap)
    launching.launch(
        _cross_entropy_forward_kernel,
        (launching.cdiv(R, BLOCK_R),),
        *(x, targets.contiguous(), losses, lse),
        *x.stride(),
        *(R, V, ignore_index, smoothing, z_loss, softcap or 1.0),
        HAS_SOFTCAP=softcap is not None,
        HAS_SMOOTHING=smoothing > 0,
        WIDE=BLOCK_R == 1 and x.stride(1) == 1,
        BLOCK_R=BLOCK_R,
        BLOCK_V=BLOCK_V,
        threads=num_warps * launching.WARP,
    )
    return losses, lse


def backward(g: Tensor, x: Tensor, targets: Tensor, lse: Tensor, options: reference.Options) -> Tensor:
    """Launch the backward kernel: dx (R, V), contiguous, in the dtype of x."""
    ignore_index, smoothing, z_loss, softcap = options
    R, V = x.shape
    dx = x.new_empty(R, V)
    if not R or not V:
        return dx
    BLOCK_R, BLOCK_V, num_warps = launch_for(x, softcap)
    alike = (x.data_ptr() - dx.data_ptr()) % 16 == 0 and (x.stride(0) - V) * x.itemsize % 16 == 0
    launching.launch(
        _cross_entropy_backward_kernel,
        (launching.cdiv(R, BLOCK_R), launching.cdiv(V, BLOCK_V)),
        *(x, targets.contiguous(), lse, g.contiguous(), dx),
        *x.stride(),
        *(R, V, ignore_index, smoothing, z_loss, softcap or 1.0),
        HAS_SOFTCAP=softcap is not None,
        WIDE=BLOCK_R == 1 and x.stride(1) == 1 and alike,
        BLOCK_R=BLOCK_R,
        BLOCK_V=BLOCK_V,
        threads=num_warps * launching.WARP,
    )
    return dx


@torch.library.custom_op("minillm_kernels::cross_entropy", mutates_args=())
def _forward(
    x: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return losses and lse in the shape of targets, of logits (..., V)."""
    if x.is_cuda:
        check_targets(targets, x.shape[-1], ignore_index)  # the public function cannot look under torch.compile
    options = (ignore_index, label_smoothing, z_loss, softcap)
    if not dispatch.launches(x):
        return reference.cross_entropy_forward(x.float(), targets, options)
    losses, lse = forward(x.reshape(-1, x.shape[-1]), targets.reshape(-1), options)
    return losses.view(targets.shape), lse.view(targets.shape)


@_forward.register_fake
def _(x: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    losses = x.new_empty(targets.shape, dtype=torch.float32)
    return losses, torch.empty_like(losses)


@torch.library.custom_op("minillm_kernels::cross_entropy_backward", mutates_args=())
def _backward(
    g: Tensor,
    x: Tensor,
    targets: Tensor,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """Return dx, contiguous, for the upstream gradients g of the losses."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    if not dispatch.launches(x):
        return reference.cross_entropy_backward(g, x.float(), targets, lse, options).to(x.dtype).contiguous()
    rows = x.reshape(-1, x.shape[-1])
    return backward(g.reshape(-1), rows, targets.reshape(-1), lse.view(-1), options).view(x.shape)


@_backward.register_fake
def _(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.options = inputs[2:]


def _gradient(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, targets, lse = ctx.saved_tensors
    return _backward(g, x, targets, lse, *ctx.options), *[None] * 5


_forward.register_autograd(_gradient, setup_context=_keep)


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> Tensor:
    """Return the losses, in the shape of targets, 0 where ignored; arguments as in the public function."""
    return _forward(logits, targets, ignore_index, label_smoothing, z_loss, softcap)[0]


def specialisations(
    launches: Callable[[int, bool], Table] = launches,
) -> Iterator[tuple[str, str, bool, tuple[int, int, int], bool]]:
    """Yield dtype's name, Triton's type of a pointer, whether there is a cap, a launch, and whether for long rows."""
    dtypes = (("f32", "*fp32", 4), ("f16", "*fp16", 2), ("bf16", "*bf16", 2))
    for (short, pointer, itemsize), softcap in product(dtypes, (False, True)):
        table = launches(itemsize, softcap)
        for entry in table:
            yield short, pointer, softcap, entry[1], entry is table[-1]


def variants() -> Iterator[Variant]:
    """Yield the ways in which the launchers above compile the kernels.

    That is every option with contiguous rows of V = 16 n logits; and for long rows without options also odd V, whose
    rows start anywhere (GPT-2's 50257), strided logits, and backward the first V of longer rows, of which x and dx do
    not lie alike.
    """
    scalars = dict.fromkeys(("x_row_stride", "num_rows", "num_cols", "ignore_index"), "i32")
    scalars |= dict.fromkeys(("smoothing", "z_loss", "softcap"), "fp32")
    pointers = {"targets_ptr": "*i64", "losses_ptr": "*fp32", "lse_ptr": "*fp32", "g_ptr": "*fp32"}
    for short, dtype, softcap, launch, long in specialisations():
        BLOCK_R, BLOCK_V, num_warps = launch
        types = scalars | pointers | {"x_ptr": dtype, "dx_ptr": dtype}
        constants = {"HAS_SOFTCAP": softcap, "WIDE": BLOCK_R == 1, "BLOCK_R": BLOCK_R, "BLOCK_V": BLOCK_V}
        suffix = f"{short} {BLOCK_R}x{BLOCK_V}" + " softcap" * softcap
        layouts = ("", " odd", " strided") if long and not softcap else ("",)
        for smoothing in (False, True):
            name, switches = f"forward {suffix}" + " smoothing" * smoothing, constants | {"HAS_SMOOTHING": smoothing}
            for layout in layouts if not smoothing else ("",):
                yield _variant(name, layout, _cross_entropy_forward_kernel, types, switches, num_warps)
        for layout in (*layouts, " sliced") if len(layouts) > 1 else layouts:
            yield _variant(f"backward {suffix}", layout, _cross_entropy_backward_kernel, types, constants, num_warps)


def _variant(
    name: str, layout: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], num_warps: int
) -> Variant:
    if layout in (" strided", " sliced"):
        constants = constants | {"WIDE": False}
    if layout == " strided":
        types = types | {"x_col_stride": "i32"}
    else:
        constants = constants | {"x_col_stride": 1}  # as Triton takes every 1
    signature = {parameter: types.get(parameter, "constexpr") for parameter in kernel.arg_names}
    aligned = {parameter for parameter, kind in signature.items() if kind[0] == "*"}
    aligned |= {"": {"x_row_stride", "num_cols"}, " sliced": {"x_row_stride"}}.get(layout, set())
    return Variant(
        op="cross_entropy",
        name=name + layout,
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=frozenset(aligned),
        num_warps=num_warps,
    )
