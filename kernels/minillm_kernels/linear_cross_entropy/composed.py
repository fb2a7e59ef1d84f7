"""The `torch` backend of linear_cross_entropy: chunks of rows, so that a chunk's logits fit into a memory budget.

The gradients of the total are computed beside it, while a chunk's logits are there, for an upstream gradient of 1; the
backward pass only scales them. Losses per row have an upstream gradient per row, unknown until then: their backward
pass computes the logits again. Each is a torch.library operator, because which rows are dropped depends on the targets'
values: torch.compile takes an operator as it is, where it could not trace that.

Read next: `../../README.md` for all ops and their cost.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minillm_kernels.cross_entropy.reference import Options
from minillm_kernels.cross_entropy.targets import check_targets
from minillm_kernels.precision import working_dtype

DEFAULT_BUDGET = 32 * 2**20  # bytes


def total(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options, memory_budget: int | None
) -> Tensor:
    """Return the sum () of the losses of hidden (N, C)."""
    budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
    return _total(hidden, weight, bias, targets, *options, budget, _wanted(hidden, weight, bias))[0]


def losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options, memory_budget: int | None
) -> Tensor:
    """Return the losses (N,) of hidden (N, C), 0 where ignored."""
    budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
    return _losses(hidden, weight, bias, targets, *options, budget)


def _wanted(*inputs: Tensor | None) -> list[bool]:
    """Return which of hidden, weight and bias need a gradient."""
    return [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]


def rows_per_chunk(budget: int, num_classes: int, dtype: torch.dtype, softcap: float | None) -> int:
    """Return how many rows' logits, their float32 copy and their slope under a cap fit into the budget; at least 1.

    >>> rows_per_chunk(2**20, 1024, torch.bfloat16, None)
    170
    """
    wide = working_dtype(dtype)
    per_logit = wide.itemsize + (dtype.itemsize if dtype != wide else 0) + (wide.itemsize if softcap else 0)
    return max(1, budget // (num_classes * per_logit))


def walk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    budget: int,
    row_gradients: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor]]:
    """Go through the rows that count, chunk by chunk.

    Args:
        hidden, weight, bias, targets: (N, C), (V, C), (V,), (N,).
        row_gradients: (N,) upstream gradients of the losses; None: ones.
        wanted: which gradients: of hidden, weight, bias.
    Returns:
        losses (N,), and the gradients in the order of `wanted`, an empty tensor for each that is not wanted.
    """
    check_targets(targets, weight.shape[0], options[0])  # the public function cannot look under torch.compile
    wide = working_dtype(hidden.dtype)
    # float16 would flush small gradients to 0: a GradScaler's factor is in the upstream gradient, which comes too late.
    narrow = wide if hidden.dtype == torch.float16 else hidden.dtype
    matrix = weight.to(hidden.dtype)  # (V, C)
    losses = hidden.new_zeros(hidden.shape[0], dtype=wide)
    dhidden, dweight, dbias = gradients = _empty_gradients(hidden, weight, wanted)

    kept = (targets != options[0]).nonzero()[:, 0]
    num_chunks = math.ceil(len(kept) / rows_per_chunk(budget, len(weight), hidden.dtype, options[3]))
    for rows in kept.chunk(max(1, num_chunks)):
        x = hidden[rows]  # (R, C)
        logits = x @ matrix.T if bias is None else torch.addmm(bias.to(x.dtype), x, matrix.T)  # (R, V)
        losses[rows], dlogits = _losses_and_dlogits(logits.to(wide), targets[rows], options, any(wanted))
        if not any(wanted):
            continue
        if row_gradients is not None:
            dlogits *= row_gradients[rows, None]
        if wanted[2]:
            dbias += dlogits.sum(0)
        dlogits = dlogits.to(narrow)
        if wanted[0]:
            dhidden[rows] = dlogits @ matrix.to(narrow)
        if wanted[1]:
            dweight.add_(dlogits.T @ x.to(narrow)) if narrow != wide else dweight.addmm_(dlogits.T, x.to(narrow))
    return losses, gradients


def _empty_gradients(hidden: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """Return zeros for the wanted gradients, sums over rows in the working dtype; empty tensors for the others."""
    wide = working_dtype(hidden.dtype)
    dtypes = (wide if hidden.dtype == torch.float16 else hidden.dtype, wide, wide)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return [
        hidden.new_zeros(shape if want else (0,), dtype=dtype)
        for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
    ]


def _losses_and_dlogits(l: Tensor, targets: Tensor, options: Options, gradient: bool) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Return losses (R,) and their gradient in the logits (R, V), which takes the place of the logits `l`.

    Equation numbers: `../cross_entropy/reference.py`.
    """
    _, smoothing, z_loss, softcap = options
    slope = None
    if softcap is not None:
        l.div_(softcap).tanh_()
        slope = 1 - l.square() if gradient else None  # (8)
        l.mul_(softcap)  # (1)
    index = targets[:, None]  # (R, 1)
    losses = (smoothing - 1) * l.gather(1, index)[:, 0]
    if smoothing > 0:
        losses -= smoothing * l.mean(1)
    m = l.amax(1, keepdim=True)  # (R, 1)
    p = l.sub_(m).exp_()
    total = p.sum(1, keepdim=True)
    lse = m + total.log()  # (2)
    losses += (lse + z_loss * lse.square())[:, 0]  # (5)
    if gradient:
        p.mul_((1 + 2 * z_loss * lse) / total)  # (3), first term of (7)
        if smoothing > 0:
            p.sub_(smoothing / l.shape[1])
        p.scatter_add_(1, index, torch.full_like(lse, smoothing - 1))  # second term of (7)
        if slope is not None:
            p.mul_(slope)  # (9)
    return losses, p


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
    budget: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the losses, and its gradients as `walk` does."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    losses, gradients = walk(hidden, weight, bias, targets, options, budget, None, wanted)
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
        (gradient * upstream).to(dtype) if want and upstream is not None else None
        for gradient, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    ]
    return (*scaled, *[None] * 7)


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
    budget: int,
) -> Tensor:
    """Return the losses (N,)."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    return walk(hidden, weight, bias, targets, options, budget, None, (False, False, False))[0]


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
    budget: int,
    row_gradients: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients as `walk` does."""
    options = (ignore_index, label_smoothing, z_loss, softcap)
    return tuple(walk(hidden, weight, bias, targets, options, budget, row_gradients, wanted)[1])  # pyright: ignore


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
        *[None] * 6,
    )


_losses.register_autograd(_gradients_of_losses, setup_context=_keep_inputs)
