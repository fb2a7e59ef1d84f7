"""Launchers and registration of the element-wise kernels, whose equations (1) to (4) are in `elementwise_kernels.py`.

A tile is 2048 elements for 128 threads: 16 each, two 16-byte loads in a 16-bit dtype; in the backward pass half that.
What has no bias and no gaps is walked as one long row.

Read next: `relu/fused.py`, then `gelu/fused.py`; `row_norm.py` for kernels that need whole rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels import elementwise_kernels as kernels
from minillm_kernels.launching import (
    DTYPES,
    TRITON_TYPE,
    cdiv,
    launch,
    make_variant,
    next_power_of_2,
    num_sms,
    rows_of,
)
from minillm_kernels.variant import Variant

FORWARD_TILE = 2048  # elements: 16 a thread
BACKWARD_TILE = 1024  # 8 a thread: there are two or three inputs, and with a bias an accumulator
MAX_BLOCK_C = 256  # with rows: 512 bytes of one row in a 16-bit dtype
THREADS = 128
PROGRAMS_PER_SM = 8  # of the backward pass with a bias: all resident at 64 registers, so that none waits for a turn


@dataclass(frozen=True)
class Function:
    """f and what its backward pass does, both under `triton.jit`, in float32.

    value: h -> f(h).
    gradient: h, dy -> dy * f'(h).
    """

    value: Any
    gradient: Any


def _blocks(num_rows: int, num_cols: int, elements: int) -> dict[str, int]:
    """Return the tile of a tensor (R, C), of as few rows as its width lets it."""
    block_c = min(next_power_of_2(num_cols), elements if num_rows == 1 else MAX_BLOCK_C)
    return {"BLOCK_R": 1 if num_rows == 1 else elements // block_c, "BLOCK_C": block_c}


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
    R, C = rows.shape
    blocks = _blocks(R, C, FORWARD_TILE)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._unary_forward_kernel,
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
    R, C = x_rows.shape
    blocks = _blocks(R, C, BACKWARD_TILE)
    row_tiles, col_tiles = cdiv(R, blocks["BLOCK_R"]), cdiv(C, blocks["BLOCK_C"])
    row_programs, partial = row_tiles, None
    if bias is not None:
        row_programs = min(row_tiles, cdiv(PROGRAMS_PER_SM * num_sms(x.device), col_tiles))
        partial = torch.empty(row_programs, C, dtype=torch.float32, device=x.device)
    launch(
        kernels._unary_backward_kernel,
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
    R, C = gate_rows.shape
    blocks = _blocks(R, C, FORWARD_TILE)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._gated_forward_kernel,
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
    R, C = gate_rows.shape
    blocks = _blocks(R, C, BACKWARD_TILE)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._gated_backward_kernel,
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
    """Register <name>_forward and _backward, both opaque to the compiler, and return the differentiable op.

    Args:
        functions: f by the word that chooses it, the op's last argument.
        reference: the op by hand, for a device without Triton.
    """

    @torch.library.custom_op(f"minillm_kernels::{name}_forward", mutates_args=())
    def forward(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
        return (
            unary_forward(x, bias, functions[form]) if dispatch.launches(x) else reference(x.contiguous(), bias, form)
        )

    @torch.library.custom_op(f"minillm_kernels::{name}_backward", mutates_args=())
    def backward(dy: Tensor, x: Tensor, bias: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
        if dispatch.launches(x):
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

    @torch.library.custom_op(f"minillm_kernels::{name}_forward", mutates_args=())
    def forward(gate: Tensor, up: Tensor, form: str) -> Tensor:
        return (
            gated_forward(gate, up, functions[form])
            if dispatch.launches(gate)
            else reference(gate.contiguous(), up, form)
        )

    @torch.library.custom_op(f"minillm_kernels::{name}_backward", mutates_args=())
    def backward(dy: Tensor, gate: Tensor, up: Tensor, form: str) -> tuple[Tensor, Tensor]:
        if dispatch.launches(gate):
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
        leaves = [t.detach().contiguous().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves, dy.contiguous())


def unary_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `unary_forward` and `unary_backward` can ask for: with a float32 bias over rows, without one flat."""
    pointers = ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr")
    for warp, form, dtype, has_bias in itertools.product((32, 64), functions, DTYPES, (False, True)):
        name = f"{form} {dtype} {'bias' if has_bias else 'flat'}".strip()
        types = dict.fromkeys(pointers, TRITON_TYPE[dtype]) | {"bias_ptr": "*fp32", "partial_ptr": "*fp32"}
        num_rows = 2 if has_bias else 1
        none = {} if has_bias else {"bias_ptr": None}  # a pointer that is None is a constant to the compiler
        forward = {
            "VALUE": functions[form].value,
            "HAS_BIAS": has_bias,
            **_blocks(num_rows, 4096, FORWARD_TILE),
            **none,
        }
        none = {} if has_bias else {"bias_ptr": None, "partial_ptr": None}
        backward = {
            "GRADIENT": functions[form].gradient,
            "HAS_BIAS": has_bias,
            **_blocks(num_rows, 4096, BACKWARD_TILE),
            **none,
        }
        for way, kernel, given in (
            ("forward", kernels._unary_forward_kernel, forward),
            ("backward", kernels._unary_backward_kernel, backward),
        ):
            yield make_variant(op, f"{way} {name}", kernel, types, given, threads=THREADS, warp=warp)


def gated_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `gated_forward` and `gated_backward` can ask for: flat, or over rows of halves of one product."""
    pointers = ("dy_ptr", "gate_ptr", "up_ptr", "y_ptr", "dgate_ptr", "dup_ptr")
    for warp, form, dtype, num_rows in itertools.product((32, 64), functions, DTYPES, (1, 2)):
        name = f"{form} {dtype} {'flat' if num_rows == 1 else 'rows'}".strip()
        types: dict[str, str] = dict.fromkeys(pointers, TRITON_TYPE[dtype])
        forward = {"VALUE": functions[form].value, **_blocks(num_rows, 4096, FORWARD_TILE)}
        both = {"VALUE": functions[form].value, "GRADIENT": functions[form].gradient}
        backward = {**both, **_blocks(num_rows, 4096, BACKWARD_TILE)}
        for way, kernel, given in (
            ("forward", kernels._gated_forward_kernel, forward),
            ("backward", kernels._gated_backward_kernel, backward),
        ):
            yield make_variant(op, f"{way} {name}", kernel, types, given, threads=THREADS, warp=warp)
