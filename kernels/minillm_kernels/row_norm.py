"""Launchers of the kernels that rms_norm and layer_norm share, their registration, and the table of launches.

Equations: `row_norm_kernels.py`.

A tile of the forward pass holds 2048 elements for 64 threads, so that a row's sums meet in two warps at most: with
eight of them layer norm took 71.6 us where it takes 52.8 now, and a copy of as many bytes 50.5 (65,536 rows of 768, an
H200, 2026-11-28, bfloat16). So a program owns 16 rows of width 128, 2 of 1024, and 1 of 2048; of a wider row a thread
has 16 elements, as long as 512 threads suffice.

The backward pass takes half as many rows, and copies those of its next tile into shared memory meanwhile, up to width
2048 in 16 bits and 1024 in 32, and some up to twice that: the bytes that are on their way in registers alone kept it at
2.4 of 4.2 TB/s. That takes three stages: with two there is room for one tile, whose copy begins when the tile before it
has been worked on, and is waited for at once. A row too wide for its accumulators to stay in registers is walked in a
loop, and the sums over rows get a kernel of their own.

Read next: `rms_norm/fused.py`, then `layer_norm/fused.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm_kernels import column_sums, dispatch
from minillm_kernels import row_norm_kernels as kernels
from minillm_kernels.launching import (
    TRITON_TYPE,
    cdiv,
    launch,
    make_variant,
    next_power_of_2,
    num_sms,
    rows_of,
    with_factor,
)
from minillm_kernels.philox import COLUMNS, keep, seed_of_dropout
from minillm_kernels.variant import Variant

# Elements of a tile of whole rows, its threads, and the elements that a thread has of a row which is wider than that.
FORWARD_TILE = (2048, 64, 16)
BACKWARD_TILE = (1024, 128, 8)  # beside which two accumulators and three inputs take some 100 registers
MOST_THREADS = 512
MAX_FORWARD = 16384  # columns; wider rows are walked in a loop
MAX_BACKWARD = 8192  # the backward pass also has the accumulators of its sums in registers
MAX_BACKWARD_WITH_MORE = 4096  # a second accumulator or random numbers beside them: 8192 columns spill on sm_100
WIDE_BLOCK_C = 2048  # columns at a time of a row that is walked in a loop: 8 a thread
WIDE_THREADS = 256
WEIGHT_TILE = {"BLOCK_R": 4, "BLOCK_C": 256}  # of the sums over wide rows: 8 a thread
WEIGHT_THREADS = 128
# Of the backward pass, rounded up to whole programs, as many as are resident, so that none waits for a turn. Two of 512
# took 173 us where one took 211 (8192 rows of 4096, layer norm with a residual, one stage, an H200); for rows of 8192,
# which take more registers, the second has to wait. Short rows have partial sums of few columns, which fewer programs
# finish sooner: 84.6 us beside 90.7 (65,536 rows of 256). A bias with dropout takes up to 128 registers, and what is
# staged above ALWAYS_STAGED up to 105; 768 threads have 80 each.
THREADS_PER_SM = 768
THREADS_PER_SM_OF_SHORT = 512
SHORT = 256  # columns
THREADS_PER_SM_WITH_MORE = 512
REGISTERS = 65536  # of a multiprocessor of NVIDIA's
ENOUGH = 96  # for a thread of the backward pass; held to 80, ptxas spills 4 bytes of one of rows of 1024 on sm_100
STAGES = 3  # of the backward pass: the row tile that is worked on, and two that are there or on their way
# Bytes of a tensor's tile: one of at most ALWAYS_STAGED is staged, one of more than MAX_STAGED never is.
# Between the two, rows of up to 4096 columns in 16 bits and 2048 in 32, are staged where it pays, as measured of 8192
# rows of 4096 in 16 bits, both passes: rms_norm's, 92.5 us beside 101.9, and layer norm's where there is a gradient of
# the sum to wait for too, 147.8 beside 156.9, by one program of 512 threads. Without that gradient layer norm's take
# 111.9 beside 106.7. Not measured: a bias, which takes registers as the mean does and counts as one, and dropout, which
# takes more.
ALWAYS_STAGED = 4096
MAX_STAGED = 8192


class Extras(NamedTuple):
    """What a backward pass has beside dy, s and the weight: a mean taken off, ds, a bias, dropout."""

    centre: bool
    ds: bool
    bias: bool
    dropout: bool


Statistics = tuple[Tensor, Tensor, Tensor, Tensor]  # y, s, mean, rstd
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # dx, dresidual, dweight, dbias


def tile(num_cols: int, size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the rows and columns of a tile of whole rows, and the threads of its program.

    >>> [tile(C, FORWARD_TILE) for C in (128, 768, 4096, 16384)]
    [(16, 128, 64), (2, 1024, 64), (1, 4096, 256), (1, 16384, 512)]
    >>> [tile(C, BACKWARD_TILE) for C in (128, 768, 4096, 8192)]
    [(8, 128, 128), (1, 1024, 128), (1, 4096, 512), (1, 8192, 512)]
    """
    elements, threads, per_thread = size
    block_c = max(COLUMNS, next_power_of_2(num_cols))
    block_r = max(1, elements // max(block_c, 64))  # at most as many rows as of 64 columns: narrower ones are rare
    return block_r, block_c, threads if block_c <= elements else min(MOST_THREADS, block_c // per_thread)


def stages(tile_bytes: int, extras: Extras) -> int:
    """Return the stages of the backward pass for tiles of so many bytes in each tensor; 1: load, then work."""
    pays = not extras.dropout and (extras.ds or not (extras.centre or extras.bias))
    return STAGES if tile_bytes <= (MAX_STAGED if pays else ALWAYS_STAGED) else 1


def threads_per_sm(num_cols: int, tile_bytes: int, extras: Extras) -> int:
    """Return how many threads of the backward pass a multiprocessor has at work."""
    large_copies = tile_bytes > ALWAYS_STAGED and stages(tile_bytes, extras) > 1
    if (extras.bias and extras.dropout) or (large_copies and (extras.centre or extras.bias)):
        return THREADS_PER_SM_WITH_MORE
    return THREADS_PER_SM_OF_SHORT if num_cols <= SHORT else THREADS_PER_SM


def registers(at_work: int) -> int | None:
    """Return the most registers that a thread may have where so many are at work; None: the compiler's choice.

    By itself ptxas saves registers to make room for programs that do not come here. That costs instructions, with
    Triton 3.6.0 some 8 bytes of spills, and layer norm adds up the two sums of a row one after the other. With what
    there is they go side by side: at width 256 86 registers in place of 56, and a loop of 202 instructions for 216
    (machine code for sm_90 with Triton 3.7.1; not measured). For sm_100 ptxas then spills 12 bytes in one case,
    rms_norm of 256 columns in float32 with all there is, where by itself it takes 106 registers.

    >>> registers(512), registers(768)
    (128, None)
    """
    most = min(248, REGISTERS // at_work // 8 * 8)  # 8 at a time
    return most if most >= ENOUGH else None


def walks_backward(num_cols: int, extras: Extras) -> bool:
    """Say whether the backward pass of rows of this width walks them in a loop."""
    return num_cols > (MAX_BACKWARD_WITH_MORE if extras.bias or extras.dropout else MAX_BACKWARD)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
    centre: bool,
) -> Statistics:
    """Return y, s, mean and rstd of (1) to (4); s is empty where it is x itself, mean without `centre`."""
    y, s, mean, rstd = _empty_forward(x, residual, seed, centre)
    if not x.numel():
        return y, s, mean, rstd
    x_rows, residual_rows = rows_of(x), None if residual is None else rows_of(residual)
    R, C = x_rows.shape
    tensors = (x_rows, residual_rows, weight.contiguous(), bias if bias is None else bias.contiguous(), seed)
    strides = (x_rows.stride(0), 0 if residual_rows is None else residual_rows.stride(0))
    if C > MAX_FORWARD:
        launch(
            kernels._row_norm_wide_forward_kernel,
            (R,),
            *tensors,
            *(y, s, mean, rstd),
            strides,
            C,
            eps,
            with_factor(dropout_p),
            CENTRE=centre,
            BLOCK_C=WIDE_BLOCK_C,
            threads=WIDE_THREADS,
        )
    else:
        block_r, block_c, threads = tile(C, FORWARD_TILE)
        launch(
            kernels._row_norm_forward_kernel,
            (cdiv(R, block_r),),
            *tensors,
            *(y, s, mean, rstd),
            strides,
            R,
            C,
            eps,
            with_factor(dropout_p),
            CENTRE=centre,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            threads=threads,
        )
    return y, s, mean, rstd


def backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    bias_dtype: torch.dtype | None,
    centre: bool,
) -> Gradients:
    """Return dx, dresidual, dweight and dbias of (7) to (10); dresidual is empty where it is dx.

    dbias is in `bias_dtype`, and empty without one.
    """
    extras = Extras(centre, ds is not None, bias_dtype is not None, seed is not None)
    dx, dresidual, dweight, dbias = _empty_backward(s, weight, seed, bias_dtype)
    if not s.numel():
        return dx, dresidual, dweight.zero_(), dbias.zero_()
    dy_rows, s_rows, ds_rows = rows_of(dy), rows_of(s), None if ds is None else rows_of(ds)
    R, C = s_rows.shape
    block_r, block_c, threads = tile(C, BACKWARD_TILE)
    tile_bytes = block_r * block_c * s.itemsize
    walks = walks_backward(C, extras)
    if walks:
        block_r, col_tiles, threads = WEIGHT_TILE["BLOCK_R"], cdiv(C, WEIGHT_TILE["BLOCK_C"]), WEIGHT_THREADS
    else:
        col_tiles = 1
    programs_per_sm = cdiv(threads_per_sm(C, tile_bytes, extras), threads)
    programs = cdiv(num_sms(s.device) * programs_per_sm, col_tiles)
    programs = min(cdiv(R, block_r), programs)
    partial = torch.empty(1 + extras.bias, programs, C, dtype=torch.float32, device=s.device)
    dweights, dbiases = partial[0], partial[1] if extras.bias else None
    strides = (dy_rows.stride(0), 0 if ds_rows is None else ds_rows.stride(0), s_rows.stride(0))
    tensors = (dy_rows, ds_rows, s_rows, weight.contiguous(), mean, rstd, seed, dx, dresidual)
    if walks:
        launch(
            kernels._row_norm_wide_backward_kernel,
            (R,),
            *tensors,
            strides,
            C,
            with_factor(dropout_p),
            CENTRE=centre,
            BLOCK_C=WIDE_BLOCK_C,
            threads=WIDE_THREADS,
        )
        launch(
            kernels._row_norm_wide_weight_kernel,
            (col_tiles, programs),
            *(dy_rows, s_rows, mean, rstd, dweights, dbiases),
            (strides[0], strides[2]),
            R,
            C,
            CENTRE=centre,
            **WEIGHT_TILE,
            threads=WEIGHT_THREADS,
        )
    else:
        launch(
            kernels._row_norm_backward_kernel,
            (programs,),
            *tensors,
            *(dweights, dbiases),
            strides,
            R,
            C,
            with_factor(dropout_p),
            CENTRE=centre,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            STAGES=stages(tile_bytes, extras),
            threads=threads,
            registers=registers(programs_per_sm * threads),
        )
    column_sums.add_up(partial, dweight, dbias if extras.bias else None)
    return dx, dresidual, dweight, dbias


def _empty_forward(x: Tensor, residual: Tensor | None, seed: Tensor | None, centre: bool) -> Statistics:
    """Return y, s, mean and rstd, unwritten."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    s = torch.empty_like(y) if residual is not None or seed is not None else x.new_empty(0)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    return y, s, torch.empty_like(rstd) if centre else rstd.new_empty(0), rstd


def _empty_backward(s: Tensor, weight: Tensor, seed: Tensor | None, bias_dtype: torch.dtype | None) -> Gradients:
    """Return dx, dresidual, dweight and dbias, unwritten."""
    dx = torch.empty(s.shape, dtype=s.dtype, device=s.device)
    dresidual = s.new_empty(0) if seed is None else torch.empty_like(dx)
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    shape = (0,) if bias_dtype is None else weight.shape
    dbias = torch.empty(shape, dtype=bias_dtype, device=weight.device)
    return dx, dresidual, dweight, dbias


Norm = Callable[
    [Tensor, Tensor, Tensor | None, float, Tensor | None, float, int | Tensor | None], tuple[Tensor, Tensor]
]
Maths = Callable[[Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor, Tensor]]
MathsBackward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def register(name: str, centre: bool, maths: Maths, maths_backward: MathsBackward) -> Norm:
    """Register <name>_forward and _backward, both opaque to the compiler, and return the differentiable op.

    Args:
        centre: whether the mean is taken off.
        maths: s, weight, bias, eps -> y, mean, rstd in float32: the reference, for a device without Triton.
        maths_backward: dy, s, weight, mean, rstd -> the gradients of s through y, of weight and of bias.
    """

    @torch.library.custom_op(f"minillm_kernels::{name}_forward", mutates_args=())
    def forward_op(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        seed: Tensor | None,
        eps: float,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if dispatch.launches(x):
            return forward(x, weight, bias, residual, seed, eps, dropout_p, centre)
        s = x.contiguous().float()
        if seed is not None:
            s = s * keep(tuple(x.shape), dropout_p, seed, x.device) / (1 - dropout_p)
        if residual is not None:
            s = s + residual
        s = s.to(x.dtype)
        y, mean, rstd = maths(s.float(), weight.float(), None if bias is None else bias.float(), eps)
        made = residual is not None or seed is not None
        return y.to(x.dtype), s if made else x.new_empty(0), mean if centre else mean.new_empty(0), rstd

    @torch.library.custom_op(f"minillm_kernels::{name}_backward", mutates_args=())
    def backward_op(
        dy: Tensor,
        ds: Tensor | None,
        s: Tensor,
        weight: Tensor,
        mean: Tensor,
        rstd: Tensor,
        seed: Tensor | None,
        dropout_p: float,
        bias_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if dispatch.launches(s):
            return backward(dy, ds, s, weight, mean, rstd, seed, dropout_p, bias_dtype, centre)
        total, dweight, dbias = maths_backward(
            dy.contiguous().float(), s.contiguous().float(), weight.float(), mean, rstd
        )
        if ds is not None:
            total = total + ds
        dbias = dbias.new_empty(0) if bias_dtype is None else dbias.to(bias_dtype)
        if seed is None:
            return total.to(s.dtype), s.new_empty(0), dweight.to(weight.dtype), dbias
        dx = total * keep(tuple(s.shape), dropout_p, seed, s.device) / (1 - dropout_p)
        return dx.to(s.dtype), total.to(s.dtype), dweight.to(weight.dtype), dbias

    @forward_op.register_fake
    def _(x, weight, bias, residual, seed, eps, dropout_p):
        return _empty_forward(x, residual, seed, centre)

    @backward_op.register_fake
    def _(dy, ds, s, weight, mean, rstd, seed, dropout_p, bias_dtype):
        return _empty_backward(s, weight, seed, bias_dtype)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Statistics) -> None:
        x, weight, bias, residual, seed, _, ctx.dropout_p = inputs
        _, s, mean, rstd = output
        made = residual is not None or seed is not None
        ctx.has_residual, ctx.bias_dtype = residual is not None, None if bias is None else bias.dtype
        ctx.save_for_backward(s if made else x, weight, mean, rstd, seed)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)  # a sum that nobody uses costs no reading of zeros

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, ds = grads[:2]
        s, weight, mean, rstd, seed = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros(s.shape, dtype=s.dtype, device=s.device)
        dx, dresidual, dweight, dbias = backward_op(dy, ds, s, weight, mean, rstd, seed, ctx.dropout_p, ctx.bias_dtype)
        return (
            dx,
            dweight,
            None if ctx.bias_dtype is None else dbias,
            None if not ctx.has_residual else dx if seed is None else dresidual,
            None,
            None,
            None,
        )

    forward_op.register_autograd(differentiate, setup_context=save)

    def norm(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None,
        dropout_p: float,
        seed: int | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return y and the sum s that was normed; arguments as in the public function."""
        drops = seed_of_dropout(dropout_p, seed, x.device)
        y, s, _, _ = forward_op(x, weight, bias, residual, drops, eps, dropout_p)
        return y, x if residual is None and drops is None else s

    return norm


def variants(op: str, centre: bool) -> Iterator[Variant]:
    """Yield the launch table: each kind of tile with all switches off and all on; each switch alone at width 1024.

    The switches add code that does not depend on each other, so that what lies between is between in registers too;
    float16 compiles to what bfloat16 does, but for the conversions, and float32 stands at width 1024 alone.
    """
    forward_switches = ("HAS_RESIDUAL", "HAS_BIAS", "HAS_DROPOUT")
    backward_switches = ("HAS_DS", "HAS_BIAS", "HAS_DROPOUT")
    for warp in (32, 64):
        for width in (128, 1024, 4096, 8192, 65536):
            for dtype in (torch.bfloat16, torch.float32) if width == 1024 else (torch.bfloat16,):
                each = width == 1024 and dtype == torch.bfloat16
                for on in ((), *((name,) for name in forward_switches if each), forward_switches):
                    yield _forward_variant(op, centre, width, dtype, on, warp)
                more = [(name,) for name in backward_switches] if each else []
                if width == 4096:  # which is staged with ds, and not without or with dropout
                    more = [("HAS_DS", "HAS_BIAS")]
                # with neither bias nor dropout twice as wide a row fits
                for on in dict.fromkeys(((), *more, ("HAS_DS",), backward_switches)):
                    yield from _backward_variants(op, centre, width, dtype, on, warp)
        yield from column_sums.variants(op, second=True, warp=warp)


def _forward_variant(op: str, centre: bool, width: int, dtype: torch.dtype, on: tuple[str, ...], warp: int) -> Variant:
    wide = width > MAX_FORWARD
    block_r, block_c, threads = tile(width, FORWARD_TILE)
    types, none = _types(dtype), {}
    for switch, pointer in (("HAS_RESIDUAL", "residual_ptr"), ("HAS_BIAS", "bias_ptr"), ("HAS_DROPOUT", "seed_ptr")):
        if switch not in on:
            none[pointer] = None  # a pointer that is None is a constant to the compiler
    blocks = {"BLOCK_C": WIDE_BLOCK_C} if wide else {"BLOCK_R": block_r, "BLOCK_C": block_c}
    return make_variant(
        op,
        f"forward {dtype} C={width} {' '.join(on) or 'plain'}",
        kernels._row_norm_wide_forward_kernel if wide else kernels._row_norm_forward_kernel,
        types | {"row_strides": ("i32", "i32")},
        {"CENTRE": centre, **blocks, **none},
        threads=WIDE_THREADS if wide else threads,
        warp=warp,
    )


def _backward_variants(
    op: str, centre: bool, width: int, dtype: torch.dtype, on: tuple[str, ...], warp: int
) -> Iterator[Variant]:
    block_r, block_c, threads = tile(width, BACKWARD_TILE)
    pointers = {"HAS_DS": "ds_ptr", "HAS_DROPOUT": "seed_ptr"}
    none = {pointer: None for switch, pointer in pointers.items() if switch not in on}
    no_bias = {} if "HAS_BIAS" in on else {"dbias_ptr": None}
    name = f"{dtype} C={width} {' '.join(on) or 'plain'}"
    types = _types(dtype) | {"row_strides": ("i32", "i32", "i32")}
    extras = Extras(centre, "HAS_DS" in on, "HAS_BIAS" in on, "HAS_DROPOUT" in on)
    if not walks_backward(width, extras):
        constants = {"CENTRE": centre, **no_bias, **none, "BLOCK_R": block_r, "BLOCK_C": block_c}
        tile_bytes = block_r * block_c * dtype.itemsize
        constants["STAGES"] = stages(tile_bytes, extras)
        most = registers(cdiv(threads_per_sm(width, tile_bytes, extras), threads) * threads)
        kernel: Any = kernels._row_norm_backward_kernel
        yield make_variant(op, f"backward {name}", kernel, types, constants, threads=threads, warp=warp, registers=most)
        return
    constants = {"CENTRE": centre, **none, "BLOCK_C": WIDE_BLOCK_C}
    kernel = kernels._row_norm_wide_backward_kernel
    yield make_variant(op, f"backward {name}", kernel, types, constants, threads=WIDE_THREADS, warp=warp)
    if on == ("HAS_DS",):  # the sums over rows do not know of it
        return
    constants = {"CENTRE": centre, **no_bias, **WEIGHT_TILE}
    types["row_strides"] = ("i32", "i32")
    kernel = kernels._row_norm_wide_weight_kernel
    yield make_variant(op, f"backward of weight {name}", kernel, types, constants, threads=WEIGHT_THREADS, warp=warp)


def _types(dtype: torch.dtype) -> dict[str, Any]:
    """Return the type of every parameter that is not i32: float32 weights beside activations in `dtype`."""
    activations = ("x_ptr", "residual_ptr", "y_ptr", "s_ptr", "dy_ptr", "ds_ptr", "dx_ptr", "dresidual_ptr")
    wide = ("weight_ptr", "bias_ptr", "mean_ptr", "rstd_ptr", "dweight_ptr", "dbias_ptr")
    return (
        {p: TRITON_TYPE[dtype] for p in activations}
        | dict.fromkeys(wide, "*fp32")
        | {"seed_ptr": "*i64", "eps": "fp32", "dropout": ("fp32", "fp32")}
    )
