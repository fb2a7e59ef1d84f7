r"""dropout in Triton: one kernel for both passes, since (1) and (2) of `reference.py` are the same function.

    y_i = x_i / (1 - p) where uniform(seed, i) >= p, else 0                                      (1)
    dx_i = dy_i / (1 - p) where uniform(seed, i) >= p, else 0                                    (2)

The random numbers are drawn again in the backward pass: nothing is kept but the seed.

Read next: `../embedding/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels.dropout import reference
from minillm_kernels.launching import DTYPES, TRITON_TYPE, cdiv, launch, make_variant, seed_on, with_factor
from minillm_kernels.variant import Variant

BLOCK = 1024  # elements of a program: 8 a thread, whose random numbers are independent chains of 10 rounds
THREADS = 128


@triton.jit
def _dropout_kernel(
    x_ptr,  # in   (N,)
    seed_ptr,  # in   () int64
    y_ptr,  # out  (N,)
    num_cols,  # N
    dropout,  # (p, 1 / (1 - p))
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: the index of element 2**31 counts too
    mask = offs < num_cols
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    p, factor = dropout
    y = tl.where(tl.rand(tl.load(seed_ptr), offs) >= p, x * factor, 0.0)  # (1), (2)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("minillm_kernels::dropout", mutates_args=())
def _op(x: Tensor, seed: Tensor, p: float) -> Tensor:
    if not dispatch.launches(x):
        y = reference.dropout(x, p, seed)
        return y.contiguous()
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        grid = (cdiv(x.numel(), BLOCK),)
        launch(_dropout_kernel, grid, x, seed, y, x.numel(), with_factor(p), BLOCK=BLOCK, threads=THREADS)
    return y


@_op.register_fake
def _(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _op(dy, *ctx.saved_tensors, ctx.p), None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """Return y; arguments as in the public function."""
    return _op(x, seed_on(seed, x.device), p)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernel is compiled."""
    for warp in (32, 64):
        for dtype in DTYPES:
            types: dict[str, Any] = {"x_ptr": TRITON_TYPE[dtype], "y_ptr": TRITON_TYPE[dtype], "seed_ptr": "*i64"}
            types["dropout"] = ("fp32", "fp32")
            yield make_variant(
                "dropout", str(dtype), _dropout_kernel, types, {"BLOCK": BLOCK}, threads=THREADS, warp=warp
            )
