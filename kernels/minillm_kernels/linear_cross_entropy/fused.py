"""The `fused` backend of linear_cross_entropy: one chunk's logits become losses and, in place, their gradient.

One program owns BLOCK_R rows. It walks over their classes once for lse, by (10) and (11) of
`../cross_entropy/fused.py`, and once more for the gradient by (3) to (9) of `../cross_entropy/reference.py`, which it
writes over the logits. The second reading comes out of the cache: what memory sees is each logit read once and each
gradient written once.

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

from minillm_kernels.cross_entropy import fused as cross_entropy
from minillm_kernels.cross_entropy.fused import capped, gradient_of_tile, loss_of_row, lse_and_sum
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
    x_t = tl.load(row_ptr + target, mask=mask_r & inside, other=0.0).to(tl.float32)
    lse, total = lse_and_sum(  # pyright: ignore[reportGeneralTypeIssues]
        row_ptr[:, None], 1, mask_r, num_cols, softcap, HAS_SOFTCAP, HAS_SMOOTHING, BLOCK_R, BLOCK_V
    )
    l_t = tl.where(inside, capped(x_t, softcap, HAS_SOFTCAP), float("nan"))
    losses = loss_of_row(lse, l_t, total, num_cols, smoothing, z_loss, HAS_SMOOTHING)
    tl.store(losses_ptr + rows, losses, mask=mask_r)

    g = tl.load(g_ptr + rows, mask=mask_r, other=0.0)
    g = tl.where(inside, g, float("nan"))[:, None]
    lse = lse[:, None]
    tl.debug_barrier()  # every lane has read its logits, x_t among them, before another lane writes over them
    offs_v = tl.arange(0, BLOCK_V)[None, :]  # (1, BLOCK_V)
    num_full = num_cols // BLOCK_V * BLOCK_V
    for start in range(0, num_full, BLOCK_V):  # whole tiles without a mask along V, which would keep accesses narrow
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
    BLOCK_R, BLOCK_V, num_warps = cross_entropy.launch_for(logits, softcap)
    with torch.cuda.device_of(logits):
        launch: Any = _linear_cross_entropy_kernel[(triton.cdiv(R, BLOCK_R),)]
        launch(
            logits,
            targets.contiguous(),
            g,
            losses,
            logits.stride(0),
            R,
            V,
            smoothing,
            z_loss,
            softcap or 1.0,
            HAS_SOFTCAP=softcap is not None,
            HAS_SMOOTHING=smoothing > 0,
            BLOCK_R=BLOCK_R,
            BLOCK_V=BLOCK_V,
            num_warps=num_warps,
        )
    return losses, logits


def variants() -> Iterator[Variant]:
    """Yield every way in which the launcher above compiles the kernel, for any V: its buffer's rows are aligned."""
    scalars = dict.fromkeys(("x_row_stride", "num_rows", "num_cols"), "i32")
    scalars |= dict.fromkeys(("smoothing", "z_loss", "softcap"), "fp32")
    pointers = {"targets_ptr": "*i64", "g_ptr": "*fp32", "losses_ptr": "*fp32"}
    kernel: Any = _linear_cross_entropy_kernel
    for (short, dtype, softcap, launch), smoothing in product(cross_entropy.specialisations(), (False, True)):
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
