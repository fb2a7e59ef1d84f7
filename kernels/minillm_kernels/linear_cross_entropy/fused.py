"""The `fused` backend of linear_cross_entropy: one chunk's logits become losses and, in place, their gradient.

One program owns BLOCK_R rows. It walks over their classes once for lse, by (10) to (12) of
`../cross_entropy/fused.py`, and once more for the gradient by (3) to (9) of `../cross_entropy/reference.py`, which it
writes over the logits. The second reading comes out of the cache, as long as it holds the rows of all programs at work:
what memory sees is each logit read once and each gradient written once.

The logits are a buffer of `chunks.walk` and nobody else's: to write over them is no trap for a caller. Without a
gradient (evaluation) the kernel of cross_entropy reads the logits, and nothing is written but losses.

Read next: `../../README.md` for all ops and their cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import launching
from minillm_kernels.cross_entropy import fused as cross_entropy
from minillm_kernels.cross_entropy.fused import (
    Table,
    capped,
    cut,
    gradient_of_tile,
    loss_of_row,
    lse_and_sum,
    lse_and_sum_of_row,
    write_gradient_of_ends,
    write_gradient_of_groups,
)
from minillm_kernels.cross_entropy.reference import Options
from minillm_kernels.linear_cross_entropy import flops as flops
from minillm_kernels.variant import Variant


@triton.jit
def _linear_cross_entropy_kernel(
    x_ptr,  # in, out  (R, V) logits, then their gradient
    targets_ptr,  # in   (R,) int64, none ignored
    g_ptr,  # in   (R,) float32, upstream gradients of the losses
    losses_ptr,  # out  (R,) float32
    x_row_stride,  # in elements; the stride along V is 1
    num_rows,  # R
    num_cols,  # V
    smoothing,
    z_loss,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # int64: row * stride can pass 2**31
    mask_r = rows < num_rows
    target = tl.load(targets_ptr + rows, mask=mask_r, other=0)  # (BLOCK_R,)
    inside = (target >= 0) & (target < num_cols)
    row_ptr = x_ptr + rows * x_row_stride
    x_row = x_ptr + tl.program_id(0).to(tl.int64) * x_row_stride  # where one row is all that the program owns
    x_t = tl.load(row_ptr + target, mask=mask_r & inside, other=0.0).to(tl.float32)
    if BLOCK_R == 1:
        lse, total = lse_and_sum_of_row(  # pyright: ignore[reportGeneralTypeIssues]
            x_row, num_cols, softcap, HAS_SOFTCAP, HAS_SMOOTHING, BLOCK_V
        )
    else:
        lse, total = lse_and_sum(  # pyright: ignore[reportGeneralTypeIssues]
            row_ptr[:, None], 1, mask_r, num_cols, softcap, HAS_SOFTCAP, HAS_SMOOTHING, BLOCK_R, BLOCK_V
        )
    l_t = tl.where(inside, capped(x_t, softcap, HAS_SOFTCAP), float("nan"))
    losses = loss_of_row(lse, l_t, total, num_cols, smoothing, z_loss, HAS_SMOOTHING)
    tl.store(losses_ptr + rows, losses, mask=mask_r)

    g = tl.load(g_ptr + rows, mask=mask_r, other=0.0)
    g = tl.where(inside, g, float("nan"))
    tl.debug_barrier()  # every lane has read its logits, x_t among them, before another lane writes over them
    if BLOCK_R == 1:
        target_row, g_row = tl.max(target, axis=0), tl.sum(g, axis=0)  # of one number each: that number
        _, whole = cut(x_row, num_cols, 128 // x_ptr.dtype.element_ty.primitive_bitwidth)
        for start in range(0, whole, BLOCK_V):
            write_gradient_of_groups(
                x_row,
                x_row,
                start,
                True,
                target_row,
                lse,
                g_row,
                num_cols,
                smoothing,
                z_loss,
                softcap,
                HAS_SOFTCAP,
                BLOCK_V,
            )
        write_gradient_of_ends(
            x_row, x_row, True, target_row, lse, g_row, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP
        )
    else:
        lse, g = lse[:, None], g[:, None]
        offs_v = tl.arange(0, BLOCK_V)[None, :]  # (1, BLOCK_V)
        num_full = num_cols // BLOCK_V * BLOCK_V
        for start in range(0, num_full, BLOCK_V):  # whole tiles without a mask along V, which would keep them narrow
            tile = row_ptr[:, None] + start + offs_v
            x = tl.load(tile, mask=mask_r[:, None], other=0.0).to(tl.float32)
            is_target = start + offs_v == target[:, None]
            dx = gradient_of_tile(x, is_target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP)
            tl.store(tile, dx, mask=mask_r[:, None])
        if num_full < num_cols:
            tile = row_ptr[:, None] + num_full + offs_v
            mask = mask_r[:, None] & (num_full + offs_v < num_cols)
            x = tl.load(tile, mask=mask, other=0.0).to(tl.float32)
            is_target = num_full + offs_v == target[:, None]
            dx = gradient_of_tile(x, is_target, lse, g, num_cols, smoothing, z_loss, softcap, HAS_SOFTCAP)
            tl.store(tile, dx, mask=mask)


# Bytes of a logit -> the launch for more than LONG classes, of which the cache would not hold the rows of all programs
# at work: as many numbers a lane as in the table of cross_entropy, but programs of 16 warps. By registers an H100 (132
# multiprocessors, a cache of 50 MB) has 396 of them at work, which is 40 MB of GPT-2's 50257 bfloat16 logits; with 4
# warps it would be 159 MB. A chunk of 4096 such rows takes 288 us; (1, 4096, 8) takes 383, (1, 2048, 4) takes 393 (an
# H200, 2026-11-28, Triton 3.6). With a cap arithmetic takes longer than a third pass through memory.
LONG = 16384
LAUNCH_OF_LONG = {2: (1, 8192, 16), 4: (1, 4096, 16)}


def launches(itemsize: int, has_softcap: bool) -> Table:
    """Return the table of cross_entropy for logits of that many bytes, without a cap with one entry more.

    >>> launches(2, False)[-2:]
    ((16384, (1, 2048, 4)), (2147483648, (1, 8192, 16)))
    """
    table = cross_entropy.launches(itemsize, has_softcap)
    if has_softcap:
        return table
    *shorter, (largest, launch) = table
    return *shorter, (LONG, launch), (largest, LAUNCH_OF_LONG[itemsize])


def losses_and_dlogits(
    logits: Tensor, targets: Tensor, g: Tensor | None, options: Options, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return losses (R,) and their gradient in the logits (R, V), which takes the place of the logits.

    Args:
        logits: (R, V), with stride 1 along V.
        targets, g, options, gradient: as in `composed.losses_and_dlogits`.
    """
    if not gradient:
        return cross_entropy.forward(logits, targets, options)[0], logits
    _, smoothing, z_loss, softcap = options
    R, V = logits.shape
    losses = logits.new_empty(R, dtype=torch.float32)
    g = torch.ones_like(losses) if g is None else g.contiguous()
    BLOCK_R, BLOCK_V, num_warps = cross_entropy.launch_for(logits, softcap, launches)
    launching.launch(
        _linear_cross_entropy_kernel,
        (launching.cdiv(R, BLOCK_R),),
        *(logits, targets.contiguous(), g, losses),
        *(logits.stride(0), R, V, smoothing, z_loss, softcap or 1.0),
        HAS_SOFTCAP=softcap is not None,
        HAS_SMOOTHING=smoothing > 0,
        BLOCK_R=BLOCK_R,
        BLOCK_V=BLOCK_V,
        threads=num_warps * launching.WARP,
    )
    return losses, logits


def variants() -> Iterator[Variant]:
    """Yield every way in which the launcher above compiles the kernel, for any V: its buffer's rows are aligned."""
    scalars = dict.fromkeys(("x_row_stride", "num_rows", "num_cols"), "i32")
    scalars |= dict.fromkeys(("smoothing", "z_loss", "softcap"), "fp32")
    pointers = {"targets_ptr": "*i64", "g_ptr": "*fp32", "losses_ptr": "*fp32"}
    kernel: Any = _linear_cross_entropy_kernel
    for (short, dtype, softcap, launch, _), smoothing in product(
        cross_entropy.specialisations(launches), (False, True)
    ):
        BLOCK_R, BLOCK_V, num_warps = launch
        types = scalars | pointers | {"x_ptr": dtype}
        yield Variant(
            op="linear_cross_entropy",
            name=f"{short} {BLOCK_R}x{BLOCK_V}" + " softcap" * softcap + " smoothing" * smoothing,
            kernel=kernel,
            signature={parameter: types.get(parameter, "constexpr") for parameter in kernel.arg_names},
            constants={
                "HAS_SOFTCAP": softcap,
                "HAS_SMOOTHING": smoothing,
                "BLOCK_R": BLOCK_R,
                "BLOCK_V": BLOCK_V,
            },
            aligned=frozenset({"x_ptr", "x_row_stride", *pointers}),
            num_warps=num_warps,
        )
