"""Launchers and registration of the element-wise kernels, whose equations (1) to (5) are in `elementwise_kernels.py`.

A tile is 2048 elements for 128 threads: 16 each, two 16-byte loads in a 16-bit dtype; twice that where dropout's random
numbers are drawn in the forward pass of one input of 16 bits. In the backward pass with a bias it is 1024: its
accumulator beside twice the elements would spill registers where there is dropout too. There a program walks down its
rows, and in 16 bits the next tiles are on their way meanwhile, as in `row_norm.py`.
What has neither bias nor dropout nor gaps is walked as one long row.

Read next: `relu/fused.py`, then `gelu/fused.py`; `row_norm.py` for kernels that need whole rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_kernels import column_sums, dispatch
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
    with_factor,
)
from minillm_kernels.philox import COLUMNS, seed_of_dropout
from minillm_kernels.variant import Variant

FORWARD_TILE = 2048  # elements: 16 a thread
# Of one input of 16 bits with dropout. gelu with bias and dropout takes 264.5 us beside 290.7 with 2048 (65,536 x 3072,
# an H200, bfloat16, 2026-11-28, Triton 3.6, as the figures below).
FORWARD_TILE_WITH_DROPOUT = 4096
BACKWARD_TILE = 2048  # gelu's both passes: 469.8 us beside 482.4 with 1024
BACKWARD_TILE_WITH_BIAS = 1024  # 8 a thread, beside an accumulator; both passes with dropout: 656 beside 799 with 2048
MAX_BLOCK_C = 256  # with rows: 512 bytes of one row in a 16-bit dtype
THREADS = 128
DROPOUT_TYPES: dict[str, Any] = {"seed_ptr": "*i64", "dropout": ("fp32", "fp32")}
STAGES_WITH_BIAS = 3  # in 16 bits: the row tile that is worked on, and two that are there or on their way
PROGRAMS_PER_SM = 8  # of the backward pass with a bias: all resident at 64 registers, so that none waits for a turn


@dataclass(frozen=True)
class Function:
    """f and what its backward pass does, both under `triton.jit`, in float32.

    value: h -> f(h).
    gradient: h, dy -> dy * f'(h).
    narrow: what stands for them in tensors of 16 bits, which show fewer digits; None: they themselves.
    backward_tile: elements of dx's tile with one input and no bias; None: BACKWARD_TILE.
    """

    value: Any
    gradient: Any
    narrow: Function | None = None
    backward_tile: int | None = None

    def on(self, dtype: torch.dtype) -> Function:
        """Return what stands for f in tensors of `dtype`."""
        return self.narrow if self.narrow is not None and dtype.itemsize == 2 else self


def _blocks(num_rows: int, num_cols: int, elements: int) -> dict[str, int]:
    """Return the tile of a tensor (R, C), of as few rows as its width lets it."""
    block_c = min(max(COLUMNS, next_power_of_2(num_cols)), elements if num_rows == 1 else MAX_BLOCK_C)
    return {"BLOCK_R": 1 if num_rows == 1 else elements // block_c, "BLOCK_C": block_c}


def _unary_forward_tile(dtype: torch.dtype, has_dropout: bool) -> int:
    """Return the elements of a tile of the forward pass of one input."""
    return FORWARD_TILE_WITH_DROPOUT if has_dropout and dtype.itemsize == 2 else FORWARD_TILE


def _unary_backward_tile(function: Function, has_bias: bool) -> int:
    """Return the elements of a tile of the backward pass of one input."""
    return BACKWARD_TILE_WITH_BIAS if has_bias else function.backward_tile or BACKWARD_TILE


def _stages(dtype: torch.dtype, has_bias: bool) -> int:
    """Return the stages of the backward pass of one input; 1: load, then work."""
    return STAGES_WITH_BIAS if has_bias and dtype.itemsize == 2 else 1


def _walked(*tensors: Tensor, by_rows: bool) -> list[Tensor]:
    """Return tensors of one shape as rows; as one long row where none of them has gaps and rows have no meaning."""
    if not by_rows and all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1) for t in tensors]
    return [rows_of(t) for t in tensors]


def unary_forward(x: Tensor, bias: Tensor | None, seed: Tensor | None, function: Function, dropout_p: float) -> Tensor:
    """Return y of (1), in the shape and dtype of x, contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    (rows,) = _walked(x, by_rows=bias is not None or seed is not None)
    R, C = rows.shape
    blocks = _blocks(R, C, _unary_forward_tile(x.dtype, seed is not None))
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._unary_forward_kernel,
        grid,
        rows,
        bias if bias is None else bias.contiguous(),
        seed,
        y,
        rows.stride(0),
        R,
        C,
        with_factor(dropout_p),
        VALUE=function.on(x.dtype).value,
        HAS_BIAS=bias is not None,
        **blocks,
        threads=THREADS,
    )
    return y


def unary_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, function: Function, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Return dx and dbias of (2); dbias is empty without a bias."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, x.new_empty(0) if bias is None else torch.zeros_like(bias)
    dy_rows, x_rows = _walked(dy, x, by_rows=bias is not None or seed is not None)
    R, C = x_rows.shape
    blocks = _blocks(R, C, _unary_backward_tile(function, bias is not None))
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
        seed,
        dx,
        partial,
        dy_rows.stride(0),
        x_rows.stride(0),
        R,
        C,
        row_programs,
        with_factor(dropout_p),
        GRADIENT=function.on(x.dtype).gradient,
        HAS_BIAS=bias is not None,
        STAGES=_stages(x.dtype, bias is not None),
        **blocks,
        threads=THREADS,
    )
    if bias is None or partial is None:
        return dx, x.new_empty(0)
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    column_sums.add_up(partial[None], dbias)
    return dx, dbias


def gated_forward(gate: Tensor, up: Tensor, seed: Tensor | None, function: Function, dropout_p: float) -> Tensor:
    """Return y of (3), in the shape and dtype of gate, contiguous."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not gate.numel():
        return y
    gate_rows, up_rows = _walked(gate, up, by_rows=seed is not None)
    R, C = gate_rows.shape
    blocks = _blocks(R, C, FORWARD_TILE)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._gated_forward_kernel,
        grid,
        gate_rows,
        up_rows,
        seed,
        y,
        gate_rows.stride(0),
        up_rows.stride(0),
        R,
        C,
        with_factor(dropout_p),
        VALUE=function.on(gate.dtype).value,
        **blocks,
        threads=THREADS,
    )
    return y


def gated_backward(
    dy: Tensor, gate: Tensor, up: Tensor, seed: Tensor | None, function: Function, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Return dgate and dup of (4)."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty_like(dgate)
    if not gate.numel():
        return dgate, dup
    dy_rows, gate_rows, up_rows = _walked(dy, gate, up, by_rows=seed is not None)
    R, C = gate_rows.shape
    blocks = _blocks(R, C, BACKWARD_TILE)
    grid = (cdiv(R, blocks["BLOCK_R"]) * cdiv(C, blocks["BLOCK_C"]),)
    launch(
        kernels._gated_backward_kernel,
        grid,
        dy_rows,
        gate_rows,
        up_rows,
        seed,
        dgate,
        dup,
        dy_rows.stride(0),
        gate_rows.stride(0),
        up_rows.stride(0),
        R,
        C,
        with_factor(dropout_p),
        VALUE=function.on(gate.dtype).value,
        GRADIENT=function.on(gate.dtype).gradient,
        **blocks,
        threads=THREADS,
    )
    return dgate, dup


# The op as its `fused.py` has it: two tensors, the word that chooses f, dropout_p, seed.
Unary = Callable[[Tensor, Tensor | None, str, float, int | Tensor | None], Tensor]
Gated = Callable[[Tensor, Tensor, str, float, int | Tensor | None], Tensor]


def register_unary(name: str, functions: Mapping[str, Function], reference: Unary) -> Unary:
    """Register <name>_forward and _backward, both opaque to the compiler, and return the differentiable op.

    Args:
        functions: f by the word that chooses it.
        reference: the op by hand, for a device without Triton.
    """

    @torch.library.custom_op(f"minillm_kernels::{name}_forward", mutates_args=())
    def forward(x: Tensor, bias: Tensor | None, seed: Tensor | None, form: str, dropout_p: float) -> Tensor:
        if dispatch.launches(x):
            return unary_forward(x, bias, seed, functions[form], dropout_p)
        return reference(x.contiguous(), bias, form, dropout_p, seed)

    @torch.library.custom_op(f"minillm_kernels::{name}_backward", mutates_args=())
    def backward(
        dy: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, form: str, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        if dispatch.launches(x):
            return unary_backward(dy, x, bias, seed, functions[form], dropout_p)
        if bias is None:
            return _gradients(lambda x: reference(x, None, form, dropout_p, seed), dy, x)[0], x.new_empty(0)
        dx, dbias = _gradients(lambda x, bias: reference(x, bias, form, dropout_p, seed), dy, x, bias)
        return dx, dbias

    @forward.register_fake
    def _(x: Tensor, bias: Tensor | None, seed: Tensor | None, form: str, dropout_p: float) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    @backward.register_fake
    def _(
        dy: Tensor, x: Tensor, bias: Tensor | None, seed: Tensor | None, form: str, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return dx, x.new_empty(0) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, bias, seed, ctx.form, ctx.dropout_p = inputs
        ctx.save_for_backward(x, bias, seed)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, seed = ctx.saved_tensors
        dx, dbias = backward(dy, x, bias, seed, ctx.form, ctx.dropout_p)
        return dx, None if bias is None else dbias, None, None, None

    forward.register_autograd(differentiate, setup_context=keep)
    return lambda x, bias, form, dropout_p, seed: forward(
        x, bias, seed_of_dropout(dropout_p, seed, x.device), form, dropout_p
    )


def register_gated(name: str, functions: Mapping[str, Function], reference: Gated) -> Gated:
    """As `register_unary`, for y = f(gate) * up."""

    @torch.library.custom_op(f"minillm_kernels::{name}_forward", mutates_args=())
    def forward(gate: Tensor, up: Tensor, seed: Tensor | None, form: str, dropout_p: float) -> Tensor:
        if dispatch.launches(gate):
            return gated_forward(gate, up, seed, functions[form], dropout_p)
        return reference(gate.contiguous(), up, form, dropout_p, seed)

    @torch.library.custom_op(f"minillm_kernels::{name}_backward", mutates_args=())
    def backward(
        dy: Tensor, gate: Tensor, up: Tensor, seed: Tensor | None, form: str, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        if dispatch.launches(gate):
            return gated_backward(dy, gate, up, seed, functions[form], dropout_p)
        dgate, dup = _gradients(lambda gate, up: reference(gate, up, form, dropout_p, seed), dy, gate, up)
        return dgate, dup

    @forward.register_fake
    def _(gate: Tensor, up: Tensor, seed: Tensor | None, form: str, dropout_p: float) -> Tensor:
        return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)

    @backward.register_fake
    def _(
        dy: Tensor, gate: Tensor, up: Tensor, seed: Tensor | None, form: str, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        return dgate, torch.empty_like(dgate)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gate, up, seed, ctx.form, ctx.dropout_p = inputs
        ctx.save_for_backward(gate, up, seed)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(dy, *ctx.saved_tensors, ctx.form, ctx.dropout_p), None, None, None

    forward.register_autograd(differentiate, setup_context=keep)
    return lambda gate, up, form, dropout_p, seed: forward(
        gate, up, seed_of_dropout(dropout_p, seed, gate.device), form, dropout_p
    )


def _gradients(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients that the reference's own backward pass gives."""
    with torch.enable_grad():
        leaves = [t.detach().contiguous().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves, dy.contiguous())


def unary_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `unary_forward` and `unary_backward` can ask for: with a float32 bias over rows, without one flat.

    With dropout over rows either way, and not in float16, which compiles to what bfloat16 does but for conversions.
    """
    types: dict[str, Any] = {"bias_ptr": "*fp32", "partial_ptr": "*fp32", **DROPOUT_TYPES}
    switches = ((), ("bias",), ("dropout",), ("bias", "dropout"))
    for warp in (32, 64):
        yield from column_sums.variants(op, second=False, warp=warp)
    for warp, form, dtype, on in itertools.product((32, 64), functions, DTYPES, switches):
        if "dropout" in on and dtype == torch.float16:
            continue
        name = f"{form} {dtype} {' '.join(on) or 'flat'}".strip()
        types |= dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), TRITON_TYPE[dtype])
        off: dict[str, Any] = {} if "bias" in on else {"bias_ptr": None}  # a pointer that is None is a constant
        off |= {} if "dropout" in on else {"seed_ptr": None}
        same = {"HAS_BIAS": "bias" in on, **off}
        num_rows = 2 if on else 1
        tile = _unary_forward_tile(dtype, "dropout" in on)
        forward = {**same, "VALUE": functions[form].on(dtype).value, **_blocks(num_rows, 4096, tile)}
        tile = _unary_backward_tile(functions[form], "bias" in on)
        backward = {**same, "GRADIENT": functions[form].on(dtype).gradient, **_blocks(num_rows, 4096, tile)}
        backward["STAGES"] = _stages(dtype, "bias" in on)
        if "bias" not in on:
            backward["partial_ptr"] = None
        for way, kernel, given in (
            ("forward", kernels._unary_forward_kernel, forward),
            ("backward", kernels._unary_backward_kernel, backward),
        ):
            yield make_variant(op, f"{way} {name}", kernel, types, given, threads=THREADS, warp=warp)


def gated_variants(op: str, functions: Mapping[str, Function]) -> Iterator[Variant]:
    """Yield what `gated_forward` and `gated_backward` can ask for: flat, or over rows of halves of one product.

    With dropout over rows alone, and as in `unary_variants`.
    """
    pointers = ("dy_ptr", "gate_ptr", "up_ptr", "y_ptr", "dgate_ptr", "dup_ptr")
    for warp, form, dtype, kind in itertools.product((32, 64), functions, DTYPES, ("flat", "rows", "dropout")):
        if kind == "dropout" and dtype == torch.float16:
            continue
        name = f"{form} {dtype} {kind}".strip()
        types: dict[str, Any] = dict.fromkeys(pointers, TRITON_TYPE[dtype]) | DROPOUT_TYPES
        same: dict[str, Any] = {"VALUE": functions[form].on(dtype).value} | (
            {} if kind == "dropout" else {"seed_ptr": None}
        )
        num_rows = 1 if kind == "flat" else 2
        forward = {**same, **_blocks(num_rows, 4096, FORWARD_TILE)}
        backward = {**same, "GRADIENT": functions[form].on(dtype).gradient, **_blocks(num_rows, 4096, BACKWARD_TILE)}
        for way, kernel, given in (
            ("forward", kernels._gated_forward_kernel, forward),
            ("backward", kernels._gated_backward_kernel, backward),
        ):
            yield make_variant(op, f"{way} {name}", kernel, types, given, threads=THREADS, warp=warp)
