"""linear_cross_entropy chunk by chunk, for `torch` and `fused`: rows of which the logits fit into a memory budget.

The gradients of the total are computed beside it, while a chunk's logits are there, for an upstream gradient of 1; the
backward pass only scales them. Losses per row have an upstream gradient per row, unknown until then: their backward
pass computes the logits again. Each is a torch.library operator, because which rows are dropped depends on the targets'
values: torch.compile takes an operator as it is, where it could not trace that.

Read next: `composed.py` and `fused.py`, which do what is done with one chunk's logits; `flops.py` counts it all.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm_kernels import dispatch
from minillm_kernels.cross_entropy.reference import Options
from minillm_kernels.cross_entropy.targets import check_count, check_targets
from minillm_kernels.linear_cross_entropy import composed
from minillm_kernels.precision import without_autocast, working_dtype

# A CPU's chunk stays in its cache. On a GPU every chunk reads and writes all of dW, 8 V C bytes beside 6 R V C
# operations: with 4.2 TB/s and 700 TFLOP/s that is 222 / R of the products' time, 5 % at 4096 rows. There the product
# that adds to dW ran at 744 TFLOP/s, at 512 rows at some 280 (V of 50,257 and 30,522, C = 768, an H200, 2026-11-28).
CPU_BUDGET = 32 * 2**20
GPU_BUDGETS = 32 * 2**20, 512 * 2**20  # bytes: the least and the most
GPU_ROWS = 4096  # at most: more of them save little
GPU_SHARE = 8  # the aim is this part of the memory of a loss that holds three numbers for each logit, as PyTorch's does
# cuBLAS has fast products for matrices whose rows are multiples of 16 bytes: with V = 50257 as it is, the three of a
# chunk ran at 92, 124 and 437 TFLOP/s (an H200, 2026-11-27). So the fused backend's logits and its copy of the weight
# have more classes, of weight 0, up to a multiple of this: 765 TFLOP/s for the three.
ALIGNMENT = 16
TILE_ROWS = 128  # of a matrix product
HALF_SCALE = 1024.0  # of float16's dlogits: from 2^-34, so that they are not flushed to 0, to 64


def total(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    memory_budget: int | None,
    num_targets: int | None,
    fused: bool,
) -> Tensor:
    """Return the sum () of the losses of hidden (N, C)."""
    wanted = _wanted(hidden, weight, bias)
    return _total(hidden, weight, bias, targets, *options, memory_budget, num_targets, fused, wanted)[0]


def losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    memory_budget: int | None,
    num_targets: int | None,
    fused: bool,
) -> Tensor:
    """Return the losses (N,) of hidden (N, C), 0 where ignored."""
    return _losses(hidden, weight, bias, targets, *options, memory_budget, num_targets, fused)


def padded(num_classes: int, fused: bool) -> int:
    """Return how many classes a buffer of logits has: V of them count.

    >>> padded(50257, True), padded(50257, False)
    (50272, 50257)
    """
    return num_classes + (-num_classes % ALIGNMENT if fused else 0)


def default_budget(kind: str, num_rows: int, num_classes: int, width: int, itemsize: int) -> int:
    """Return the memory budget in bytes on a kind of device.

    On a GPU what an eighth of the memory of PyTorch's loss has room for beside dW in float32, the copy of the weight,
    and the gradient of hidden before and after it is scaled. Where those leave none, for few rows or wide ones, half of
    what the first two take: larger chunks are faster, and it all is at most half as much again as without them. Beyond
    the least never more than half of the logits.

    >>> [default_budget("cuda", rows, 50272, 768, 2) // 2**20 for rows in (1024, 8192, 65536)]
    [49, 49, 392]
    """
    if kind != "cuda":
        return CPU_BUDGET
    all_logits, held = num_rows * num_classes * itemsize, num_classes * width * (4 + itemsize)
    least, most = GPU_BUDGETS
    room = 3 * all_logits // GPU_SHARE - held - 2 * num_rows * width * itemsize
    wanted = room if room >= least else held // 2
    return max(least, min(wanted, most, all_logits // 2, GPU_ROWS * num_classes * itemsize))


def _wanted(*inputs: Tensor | None) -> list[bool]:
    """Return which of hidden, weight and bias need a gradient."""
    return [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]


def rows_per_chunk(budget: int, num_classes: int, dtype: torch.dtype, softcap: float | None, fused: bool) -> int:
    """Return how many rows' logits fit into the budget, with what `composed` makes of them; at least 1.

    That is a float32 copy, probabilities in float32, and the slope under a cap. `fused` works in place.

    >>> [rows_per_chunk(2**20, 1024, torch.bfloat16, None, fused) for fused in (False, True)]
    [102, 512]
    """
    wide = working_dtype(dtype)
    per_logit = dtype.itemsize + wide.itemsize * (1 + (dtype != wide) + bool(softcap))
    return max(1, budget // max(1, num_classes * (dtype.itemsize if fused else per_logit)))


@without_autocast
def walk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    memory_budget: int | None,
    num_targets: int | None,
    row_gradients: Tensor | None,
    wanted: Sequence[bool],
    fused: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Go through the rows that count, chunk by chunk.

    The number of rows that count is a size of matrix products: on a GPU it is waited for, unless the caller knows it.
    While a CUDA graph is captured all rows are taken: a replay may have another number.

    Args:
        hidden, weight, bias, targets: (N, C), (V, C), (V,), (N,).
        memory_budget: in bytes; None: `default_budget`, here because it branches on a size that may depend on data.
        num_targets: the number of rows that count; None: not known.
        row_gradients: (N,) upstream gradients of the losses; None: ones.
        wanted: which gradients: of hidden, weight, bias.
        fused: whether a kernel does what is done with a chunk's logits.
    Returns:
        losses (N,), and the gradients in the order of `wanted`, an empty tensor for each that is not wanted.
    """
    (N, C), V = hidden.shape, weight.shape[0]
    check_targets(targets, V, options[0])  # the public function cannot look under torch.compile
    check_count(targets, options[0], num_targets)
    losses = hidden.new_zeros(N, dtype=working_dtype(hidden.dtype))
    in_place = fused and dispatch.launches(hidden)  # a kernel writes the gradient over a chunk's logits
    num_classes = padded(V, in_place)  # V' >= V
    matrix = _with_rows(weight, num_classes, hidden.dtype)  # (V', C)
    bias = None if bias is None else _with_rows(bias, num_classes, hidden.dtype)
    gradients = _empty_gradients(hidden, matrix, wanted)
    dhidden, dweight, dbias = gradients
    g, scale = row_gradients, None
    if fused and hidden.dtype == torch.float16:
        g, scale = _scaled(torch.ones_like(losses) if g is None else g)

    kept = targets != options[0]  # (N,)
    all_rows = _captures(hidden)
    if all_rows:
        targets = torch.where(kept, targets, 0)
        g = torch.where(kept, 1.0 if g is None else g, 0.0)
    counting = None if all_rows else _places(kept, num_targets)
    budget = memory_budget
    if budget is None:
        budget = default_budget(hidden.device.type, N, num_classes, C, hidden.dtype.itemsize)
    per_chunk = rows_per_chunk(budget, num_classes, hidden.dtype, options[3], fused)
    step = composed.losses_and_dlogits
    if in_place:
        from minillm_kernels.linear_cross_entropy.fused import losses_and_dlogits as step  # imports Triton
    buffer = None
    for rows in _chunks(N, counting, per_chunk):
        x = hidden[rows]  # (R, C)
        R = x.shape[0]
        if buffer is None:  # the first chunk is the largest
            buffer = hidden.new_empty(R, num_classes)
        logits = buffer[:R]
        if bias is None:
            torch.mm(x, matrix.T, out=logits)
        else:
            torch.addmm(bias, x, matrix.T, out=logits)
        g_rows = None if g is None else g[rows]
        losses[rows], dlogits = step(logits[:, :V], targets[rows], g_rows, options, any(wanted))
        if in_place:
            dlogits = logits  # with the classes past V, whose logits and gradients are 0
        if wanted[2]:
            dbias += dlogits.sum(0, dtype=dbias.dtype)
        if wanted[0]:
            dhidden[rows] = _product(dlogits, matrix, dhidden.dtype)
        if wanted[1]:
            _add_product(dweight, dlogits.T, x)
        del dlogits  # else it would be there beside the next chunk's
    if scale is not None:
        for gradient in gradients:
            gradient.div_(scale)
    return torch.where(kept, losses, 0.0) if all_rows else losses, [dhidden, dweight[:V], dbias[:V]]


def _captures(hidden: Tensor) -> bool:
    return hidden.is_cuda and torch.cuda.is_current_stream_capturing()


def _places(kept: Tensor, number: int | None) -> Tensor | None:
    """Return where `kept` (N,) is true, None: known to be everywhere. A known number of places is not waited for."""
    N = len(kept)
    if number == N:
        return None
    if number is None:
        return kept.nonzero()[:, 0]
    return kept.nonzero_static(size=number, fill_value=N)[:, 0]  # past the end: a number too large is no silent mistake


def _chunks(N: int, counting: Tensor | None, per_chunk: int) -> Iterator[Tensor | slice]:
    """Yield the rows of each chunk; slices, which copy nothing, where all N rows count.

    Chunks are as nearly equal as can be, but several are of whole tiles of a matrix product where the budget has room
    for one: of more rows where it has room for those, else of fewer.
    """
    count = N if counting is None else len(counting)
    size = math.ceil(count / max(1, math.ceil(count / per_chunk)))
    if size < count and per_chunk >= TILE_ROWS:
        size = min(math.ceil(size / TILE_ROWS), per_chunk // TILE_ROWS) * TILE_ROWS
    for start in range(0, count, max(1, size)):
        end = min(start + size, count)
        yield slice(start, end) if counting is None or count == N else counting[start:end]


def _with_rows(tensor: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor in `dtype` with so many rows, those that are added 0; itself where nothing changes."""
    if tensor.shape[0] == rows:
        return tensor.to(dtype)
    made = tensor.new_empty(rows, *tensor.shape[1:], dtype=dtype)
    made[: len(tensor)] = tensor
    made[len(tensor) :] = 0
    return made


def _scaled(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return upstream gradients of which the largest is HALF_SCALE, and what they were multiplied by; no waiting."""
    largest = g.abs().amax() if g.numel() else g.sum()
    scale = HALF_SCALE / torch.where(largest > 0, largest, 1.0)
    return g * scale, scale


@cache
def _has_wide_product(kind: str, dtype: torch.dtype) -> bool:
    """Return whether torch multiplies this dtype into a float32 sum on a kind of device; tried once."""
    if kind == "cpu":
        return False
    a, b = torch.zeros(16, 16, dtype=dtype, device=kind), torch.zeros(16, 16, dtype=torch.float32, device=kind)
    try:
        torch.addmm(b, a, a, out_dtype=torch.float32, out=b)
        torch.mm(a, a, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b in `dtype`."""
    b = b.to(a.dtype)
    if a.dtype == dtype:
        return a @ b
    if _has_wide_product(a.device.type, a.dtype):
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to a total in the working dtype, in which it is summed up where the device can do that."""
    b = b.to(a.dtype)
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _has_wide_product(a.device.type, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif a.dtype == torch.float16:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))  # a scaled gradient's product may pass float16's end
    else:
        total.add_(a @ b)


def _empty_gradients(hidden: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """Return zeros for the wanted gradients, sums over rows in the working dtype; empty tensors for the others."""
    wide = working_dtype(hidden.dtype)
    dtypes = (wide if hidden.dtype == torch.float16 else hidden.dtype, wide, wide)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return [
        hidden.new_zeros(shape if want else (0,), dtype=dtype)
        for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
    ]


@torch.library.custom_op("minillm_kernels::linear_cross_entropy_total", mutates_args=())
def _total(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    memory_budget: int | None,
    num_targets: int | None,
    fused: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the losses, and its gradients as `walk` does."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    losses, gradients = walk(hidden, weight, bias, targets, options, memory_budget, num_targets, None, wanted, fused)
    return losses.sum(), *gradients  # pyright: ignore


@_total.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wanted = rest[-1]
    return hidden.new_empty((), dtype=working_dtype(hidden.dtype)), *_empty_gradients(hidden, weight, wanted)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
    ctx.wanted = inputs[-1]
    ctx.set_materialize_grads(False)  # else zeros come for the kept gradients, another (V, C)


def _scale_gradients(ctx: Any, upstream: Tensor | None, *of_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(tensor is not None for tensor in of_gradients):  # they were kept as constants: the answer would be wrong
        raise RuntimeError(
            "linear_cross_entropy has no second derivative; use cross_entropy(hidden @ weight.T, targets)"
        )
    scaled = [
        _times(gradient, upstream, dtype) if want and upstream is not None else None
        for gradient, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    ]
    return (*scaled, *[None] * 9)


def _times(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient * upstream in `dtype`: without a product in another on the way, which for dW is 4 V C bytes."""
    if gradient.dtype == dtype or torch.is_grad_enabled():
        return (gradient * upstream).to(dtype)
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))


_total.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@torch.library.custom_op("minillm_kernels::linear_cross_entropy_losses", mutates_args=())
def _losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    memory_budget: int | None,
    num_targets: int | None,
    fused: bool,
) -> Tensor:
    """Return the losses (N,)."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    return walk(hidden, weight, bias, targets, options, memory_budget, num_targets, None, (False,) * 3, fused)[0]


@_losses.register_fake
def _(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=working_dtype(hidden.dtype))


@torch.library.custom_op("minillm_kernels::linear_cross_entropy_losses_backward", mutates_args=())
def _losses_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    memory_budget: int | None,
    num_targets: int | None,
    fused: bool,
    row_gradients: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients as `walk` does."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    found = walk(hidden, weight, bias, targets, options, memory_budget, num_targets, row_gradients, wanted, fused)
    return tuple(found[1])  # pyright: ignore


@_losses_backward.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(_empty_gradients(hidden, weight, rest[-1]))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _gradients_of_losses(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    inputs = ctx.saved_tensors
    gradients = _losses_backward(*inputs, *ctx.rest, upstream, wanted)
    return (
        *[
            gradient.to(tensor.dtype) if want else None
            for gradient, tensor, want in zip(gradients, inputs, wanted, strict=False)
        ],
        *[None] * 8,
    )


_losses.register_autograd(_gradients_of_losses, setup_context=_keep_inputs)
