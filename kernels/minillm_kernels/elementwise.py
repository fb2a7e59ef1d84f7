r"""Kernels for every element-wise non-linearity: written once, with the function itself as a compile-time parameter.

Two skeletons, forward and backward each. f is the op's own, two functions under `triton.jit` in its `fused.py`:

    unary:  h = x + bias,  y = f(h)                                                              (1)
            dx = dh = dy * f'(h),   dbias = sum over rows of dh                                  (2)
    gated:  y = f(gate) * up                                                                     (3)
            dgate = dy * up * f'(gate),   dup = dy * f(gate)                                     (4)

All is bound by memory, so each tensor is moved once: the backward pass recomputes h from x instead of keeping it, and
sums dbias while dh is in registers. The sum has two stages: each program walks down its own row tiles with one
accumulator and writes one row of partial sums, then a second pass adds those rows. No atomics: the same input gives the
same bits.

A tile is 2048 elements for 128 threads: 16 each, two 16-byte loads in a 16-bit dtype. What has no bias and no gaps is
walked as one long row.

Read next: `relu/fused.py`, then `gelu/fused.py`; `row_norm.py` for kernels that need whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels.launching import (
    DTYPES,
    TRITON_TYPE,
    cdiv,
    launch,
    make_variant,
    next_power_of_2,
    num_sms,
    rows_of,
    runs_kernel,
)
from minillm_kernels.variant import Variant

TILE = 2048  # elements
MAX_BLOCK_C = 256  # with rows: 512 bytes of one row in a 16-bit dtype
THREADS = 128
PROGRAMS_PER_SM = 4  # of the backward pass with a bias: all resident at its 95 registers, so that none waits for a turn


@dataclass(frozen=True)
class Function:
    """f and what its backward pass does, both under `triton.jit`, in float32.

    value: h -> f(h).
    gradient: h, dy -> dy * f'(h).
    """

    value: Any
    gradient: Any


@triton.jit
def logistic(z):
    """Return 1 / (1 + exp(-z)) without an overflow: the exponential is never above 1."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1 + e)


@triton.jit
def _row_tile(num_cols, BLOCK_C: tl.constexpr):
    """Return which row tile this program begins with; the column tiles of one row tile are neighbours."""
    return tl.program_id(0) // tl.cdiv(num_cols, BLOCK_C)


@triton.jit
def _columns(num_cols, BLOCK_C: tl.constexpr):
    """Return the columns of this program, (BLOCK_C,) int64."""
    return (tl.program_id(0) % tl.cdiv(num_cols, BLOCK_C)).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _unary_forward_kernel(
    x_ptr,  # in   (R, C)
    bias_ptr,  # in   (C,), with HAS_BIAS
    y_ptr,  # out  (R, C), contiguous
    x_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    VALUE: tl.constexpr,  # f
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = _columns(num_cols, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_c = offs_c < num_cols
    mask = (offs_r < num_rows)[:, None] & mask_c[None, :]
    h = tl.load(x_ptr + offs_r[:, None] * x_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        h += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    y = VALUE(h)  # (1)
    tl.store(y_ptr + offs_r[:, None] * num_cols + offs_c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _unary_backward_kernel(
    dy_ptr,  # in   (R, C)
    x_ptr,  # in   (R, C)
    bias_ptr,  # in   (C,), with HAS_BIAS
    dx_ptr,  # out  (R, C), contiguous
    partial_ptr,  # out  (row_programs, C) float32, with HAS_BIAS: one row of the sum (2) per program
    dy_row_stride,  # in elements
    x_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    row_programs,  # programs that share the row tiles of one column tile
    GRADIENT: tl.constexpr,  # dy * f'(h)
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row_program, offs_c = _row_tile(num_cols, BLOCK_C), _columns(num_cols, BLOCK_C)
    mask_c = offs_c < num_cols
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # rows are added at the end: there they cross warps
    for row_tile in range(row_program, tl.cdiv(num_rows, BLOCK_R), row_programs):
        offs_r = tl.cast(row_tile, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (offs_r < num_rows)[:, None] & mask_c[None, :]
        dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        h = tl.load(x_ptr + offs_r[:, None] * x_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            h += bias[None, :]
        dh = GRADIENT(h, dy)  # (2); 0 outside of the tensor, where dy is
        if HAS_BIAS:
            dbias += dh
        tl.store(dx_ptr + offs_r[:, None] * num_cols + offs_c[None, :], dh.to(dx_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        partial = partial_ptr + tl.cast(row_program, tl.int64) * num_cols + offs_c
        tl.store(partial, tl.sum(dbias, axis=0), mask=mask_c)


@triton.jit
def _gated_forward_kernel(
    gate_ptr,  # in   (R, C)
    up_ptr,  # in   (R, C)
    y_ptr,  # out  (R, C), contiguous
    gate_row_stride,  # in elements
    up_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    VALUE: tl.constexpr,  # f
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = _columns(num_cols, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (offs_r < num_rows)[:, None] & (offs_c < num_cols)[None, :]
    gate = tl.load(gate_ptr + offs_r[:, None] * gate_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + offs_r[:, None] * up_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    y = VALUE(gate) * up  # (3)
    tl.store(y_ptr + offs_r[:, None] * num_cols + offs_c[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_backward_kernel(
    dy_ptr,  # in   (R, C)
    gate_ptr,  # in   (R, C)
    up_ptr,  # in   (R, C)
    dgate_ptr,  # out  (R, C), contiguous
    dup_ptr,  # out  (R, C), contiguous
    dy_row_stride,  # in elements
    gate_row_stride,  # in elements
    up_row_stride,  # in elements
    num_rows,  # R
    num_cols,  # C
    VALUE: tl.constexpr,  # f
    GRADIENT: tl.constexpr,  # dy * f'(gate)
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = _columns(num_cols, BLOCK_C)
    offs_r = _row_tile(num_cols, BLOCK_C).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (offs_r < num_rows)[:, None] & (offs_c < num_cols)[None, :]
    dy = tl.load(dy_ptr + offs_r[:, None] * dy_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + offs_r[:, None] * gate_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + offs_r[:, None] * up_row_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    offs = offs_r[:, None] * num_cols + offs_c[None, :]
    tl.store(dgate_ptr + offs, GRADIENT(gate, dy * up).to(dgate_ptr.dtype.element_ty), mask=mask)  # (4)
    tl.store(dup_ptr + offs, (dy * VALUE(gate)).to(dup_ptr.dtype.element_ty), mask=mask)  # (4)


def _blocks(num_rows: int, num_cols: int) -> dict[str, int]:
    """Return the tile of a tensor (R, C): 2048 elements, of as few rows as its width lets it."""
    width = next_power_of_2(num_cols)
    block_c = min(width, TILE if num_rows == 1 else MAX_BLOCK_C)
    return {"BLOCK_R": 1 if num_rows == 1 else TILE // block_c, "BLOCK_C": block_c}


def _flat(*tensors: Tensor) -> list[Tensor]:
    """Return tensors of one shape as rows; as one long row where none of them has gaps."""
    if all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1) for t in tensors]
    return [rows_of(t) for t in tensors]


def unary_forward(x: Tensor, bias: Tensor | None, function: Function) -> Tensor:
    """Return y of (1), in the shape and dtype of x, contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    rows = rows_of(x) if bias is not None else _flat(x)[0]
    (R, C), blocks = rows.shape, _blocks(*rows.shape)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        _unary_forward_kernel,
        grid,
        rows,
        bias if bias is None else bias.contiguous(),
        y,
        rows.stride(0),
        R,
        C,
        VALUE=function.value,
        HAS_BIAS=bias is not None,
        **blocks,
        threads=THREADS,
    )
    return y


def unary_backward(dy: Tensor, x: Tensor, bias: Tensor | None, function: Function) -> tuple[Tensor, Tensor]:
    """Return dx and dbias of (2); dbias is empty without a bias."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, x.new_empty(0) if bias is None else torch.zeros_like(bias)
    dy_rows, x_rows = (rows_of(dy), rows_of(x)) if bias is not None else _flat(dy, x)
    (R, C), blocks = x_rows.shape, _blocks(*x_rows.shape)
    row_tiles, col_tiles = cdiv(R, blocks["BLOCK_R"]), cdiv(C, blocks["BLOCK_C"])
    row_programs, partial = row_tiles, None
    if bias is not None:
        row_programs = min(row_tiles, cdiv(PROGRAMS_PER_SM * num_sms(x.device), col_tiles))
        partial = torch.empty(row_programs, C, dtype=torch.float32, device=x.device)
    launch(
        _unary_backward_kernel,
        (row_programs * col_tiles,),
        dy_rows,
        x_rows,
        bias if bias is None else bias.contiguous(),
        dx,
        partial,
        dy_rows.stride(0),
        x_rows.stride(0),
        R,
        C,
        row_programs,
        GRADIENT=function.gradient,
        HAS_BIAS=bias is not None,
        **blocks,
        threads=THREADS,
    )
    if bias is None or partial is None:
        return dx, x.new_empty(0)
    return dx, partial.sum(0).to(bias.dtype)


def gated_forward(gate: Tensor, up: Tensor, function: Function) -> Tensor:
    """Return y of (3), in the shape and dtype of gate, contiguous."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not gate.numel():
        return y
    gate_rows, up_rows = _flat(gate, up)
    (R, C), blocks = gate_rows.shape, _blocks(*gate_rows.shape)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        _gated_forward_kernel,
        grid,
        gate_rows,
        up_rows,
        y,
        gate_rows.stride(0),
        up_rows.stride(0),
        R,
        C,
        VALUE=function.value,
        **blocks,
        threads=THREADS,
    )
    return y


def gated_backward(dy: Tensor, gate: Tensor, up: Tensor, function: Function) -> tuple[Tensor, Tensor]:
    """Return dgate and dup of (4)."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty_like(dgate)
    if not gate.numel():
        return dgate, dup
    dy_rows, gate_rows, up_rows = _flat(dy, gate, up)
    (R, C), blocks = gate_rows.shape, _blocks(*gate_rows.shape)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        _gated_backward_kernel,
        grid,
        dy_rows,
        gate_rows,
        up_rows,
        dgate,
        dup,
        dy_rows.stride(0),
        gate_rows.stride(0),
        up_rows.stride(0),
        R,
        C,
        VALUE=function.value,
        GRADIENT=function.gradient,
        **blocks,
        threads=THREADS,
    )
    return dgate, dup


def register_unary(
    name: str, functions: Mapping[str, Function], reference: Callable[[Tensor, Tensor | None, str], Tensor]
) -> Callable[[Tensor, Tensor | None, str], Tensor]:
    """Register minillm::<name>_forward and _backward, both opaque to the compiler, and return the differentiable op.

    Args:
        functions: f by the word that chooses it, the op's last argument.
        reference: the op by hand, for a device without Triton.
    """

    @torch.library.custom_op(f"minillm::{name}_forward", mutates_args=())
    def forward(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
        return unary_forward(x, bias, functions[form]) if runs_kernel(x) else reference(x, bias, form)

    @torch.library.custom_op(f"minillm::{name}_backward", mutates_args=())
    def backward(dy: Tensor, x: Tensor, bias: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
        if runs_kernel(x):
            return unary_backward(dy, x, bias, functions[form])
        if bias is None:
            return _gradients(lambda x: reference(x, None, form), dy, x)[0], x.new_empty(0)
        dx, dbias = _gradients(lambda x, bias: reference(x, bias, form), dy, x, bias)
        return dx, dbias

    @forward.register_fake
    def _(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    @backward.register_fake
    def _(dy: Tensor, x: Tensor, bias: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return dx, x.new_empty(0) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, bias, ctx.form = inputs
        ctx.save_for_backward(x, bias)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dx, dbias = backward(dy, x, bias, ctx.form)
        return dx, None if bias is None else dbias, None

    forward.register_autograd(differentiate, setup_context=keep)
    return forward


def register_gated(
    name: str, functions: Mapping[str, Function], reference: Callable[[Tensor, Tensor, str], Tensor]
) -> Callable[[Tensor, Tensor, str], Tensor]:
    """As `register_unary`, for y = f(gate) * up."""

    @torch.library.custom_op(f"minillm::{name}_forward", mutates_args=())
    def forward(gate: Tensor, up: Tensor, form: str) -> Tensor:
        return gated_forward(gate, up, functions[form]) if runs_kernel(gate) else reference(gate, up, form)

    @torch.library.custom_op(f"minillm::{name}_backward", mutates_args=())
    def backward(dy: Tensor, gate: Tensor, up: Tensor, form: str) -> tuple[Tensor, Tensor]:
        if runs_kernel(gate):
            return gated_backward(dy, gate, up, functions[form])
        dgate, dup = _gradients(lambda gate, up: reference(gate, up, form), dy, gate, up)
        return dgate, dup

    @forward.register_fake
    def _(gate: Tensor, up: Tensor, form: str) -> Tensor:
        return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)

    @backward.register_fake
    def _(dy: Tensor, gate: Tensor, up: Tensor, form: str) -> tuple[Tensor, Tensor]:
        dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        return dgate, torch.empty_like(dgate)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gate, up, ctx.form = inputs
        ctx.save_for_backward(gate, up)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(dy, *ctx.saved_tensors, ctx.form), None

    forward.register_autograd(differentiate, setup_context=keep)
    return forward


def _gradients(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients that the reference's own backward pass gives."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves, dy)


def unary_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `unary_forward` and `unary_backward` can ask for: with a float32 bias over rows, without one flat."""
    for warp in (32, 64):
        for form, function in functions.items():
            for dtype in DTYPES:
                for has_bias in (False, True):
                    name = f"{form} {dtype} {'bias' if has_bias else 'flat'}"
                    types = {p: TRITON_TYPE[dtype] for p in ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr")}
                    types |= {"bias_ptr": "*fp32", "partial_ptr": "*fp32"}
                    tile = {"HAS_BIAS": has_bias, **_blocks(2 if has_bias else 1, 4096)}
                    # a pointer that is None is a constant to the compiler
                    none = {} if has_bias else {"bias_ptr": None}
                    constants = {"VALUE": function.value, **tile, **none}
                    yield make_variant(
                        op, f"forward {name}", _unary_forward_kernel, types, constants, threads=THREADS, warp=warp
                    )
                    none = {} if has_bias else {"bias_ptr": None, "partial_ptr": None}
                    constants = {"GRADIENT": function.gradient, **tile, **none}
                    yield make_variant(
                        op, f"backward {name}", _unary_backward_kernel, types, constants, threads=THREADS, warp=warp
                    )


def gated_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `gated_forward` and `gated_backward` can ask for: flat, or over rows of halves of one product."""
    for warp in (32, 64):
        for form, function in functions.items():
            for dtype in DTYPES:
                for layout, num_rows in (("flat", 1), ("rows", 2)):
                    name = f"{form} {dtype} {layout}"
                    pointers = ("dy_ptr", "gate_ptr", "up_ptr", "y_ptr", "dgate_ptr", "dup_ptr")
                    types = {p: TRITON_TYPE[dtype] for p in pointers}
                    constants = {"VALUE": function.value, **_blocks(num_rows, 4096)}
                    yield make_variant(
                        op, f"forward {name}", _gated_forward_kernel, types, constants, threads=THREADS, warp=warp
                    )
                    constants = {"GRADIENT": function.gradient, **constants}
                    yield make_variant(
                        op, f"backward {name}", _gated_backward_kernel, types, constants, threads=THREADS, warp=warp
                    )
