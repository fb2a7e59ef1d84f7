"""The `fused` backend of attention: launchers, and registration as ops of PyTorch.

Two ops, so that the compiler sees neither the inside of the forward nor of the backward pass:

    minillm_kernels::attention_forward    -> y, lse
    minillm_kernels::attention_backward   -> dq, dk, dv, dbias

Queries, keys and values that are neighbours, heads of one product, get gradients that are neighbours too: views of one
tensor. So the gradient of that product is there, where putting the three together reads and writes them all (137 us of
a layer of GPT-2's 65,536 tokens, an H200, 2026-11-28): under torch.compile, which sees that the parts of a split are
joined again. Without it they are copied as before.

Each op has a fake implementation (shapes for the compiler), a CPU implementation (the kernels where Triton is
interpreted, else the maths of `reference.py`) and a count of operations; the first has the second as its derivative.

Read next: `decode.py`.
"""

# no `from __future__ import annotations`: PyTorch reads the ops' annotations as types
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from minillm_kernels import dispatch
from minillm_kernels.attention import configs, hopper_launcher, reference
from minillm_kernels.attention.arguments import call_arguments, launched, tiles
from minillm_kernels.attention.backward import (
    _attention_dbias_kernel,
    _attention_delta_kernel,
    _attention_dk_dv_kernel,
    _attention_dq_kernel,
)
from minillm_kernels.attention.decode import decode, decodes
from minillm_kernels.attention.forward import _attention_forward_kernel
from minillm_kernels.attention.masks import Masks
from minillm_kernels.attention.variants import variants
from minillm_kernels.exponential import LOG2E
from minillm_kernels.launching import cdiv
from minillm_kernels.philox import seed_of_dropout

__all__ = ["attention", "attention_backward", "attention_forward", "variants"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    seed: int | Tensor | None,
    scale: float,
) -> Tensor:
    """Return y; arguments as in the public function."""
    left, right = masks.window
    if masks.causal:
        right = 0
    random = seed_of_dropout(dropout_p, seed, q.device)
    tensors = (q, k, v) if bias is None else (q, k, v, bias)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if not needs_gradient and decodes(q, k, masks):
        return decode(
            q, k, v, bias, alibi_slopes, masks.key_start, masks.key_stop, masks.prefix, random,
            left, right, softcap, dropout_p, scale,
        )  # fmt: skip
    y, _ = attention_forward(
        q, k, v, bias, alibi_slopes, masks.key_start, masks.key_stop, masks.segments, masks.cu_seqlens_q,
        masks.cu_seqlens_k, masks.prefix, random, left, right, softcap, dropout_p, scale,
    )  # fmt: skip
    return y


@torch.library.custom_op("minillm_kernels::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    key_start: Tensor | None,
    key_stop: Tensor | None,
    segments: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    prefix: Tensor | None,
    seed: Tensor | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return y (B, T, H, D) and lse (B, H, T) float32, in units of log2(e) and inf where a query sees nothing.

    Arguments are those of the public function; causality is right = 0.
    """
    B, T, H, D = q.shape
    masks = Masks(False, (left, right), key_start, key_stop, segments, cu_seqlens_q, cu_seqlens_k, prefix)
    if not dispatch.launches(q):
        return _forward_by_reference(q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale)
    terms = {"alibi_slopes": alibi_slopes, "bias": bias, "softcap": softcap, "dropout_p": dropout_p, "scale": scale}
    if hopper_launcher.serves(q, k, v, masks, **terms):
        return hopper_launcher.forward(q, k, v, masks, scale)
    y = torch.empty((B, T, H, D), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    if not y.numel():
        return y, lse.fill_(torch.inf)
    call = call_arguments(q, k, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale)

    def run(launch: configs.Launch) -> None:
        launched(_attention_forward_kernel, cdiv(T, launch.block_m) * B * H)(
            q, k, v, y, lse, q.stride(), k.stride(), v.stride(), y.stride(), *call, **tiles(launch, D)
        )  # fmt: skip

    with torch.cuda.device_of(q):
        configs.run("forward", q, call.heavy, run, (T, k.shape[1], right is None))
    return y, lse


@torch.library.custom_op("minillm_kernels::attention_backward", mutates_args=())
def attention_backward(
    dy: Tensor,
    y: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    key_start: Tensor | None,
    key_stop: Tensor | None,
    segments: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    prefix: Tensor | None,
    seed: Tensor | None,
    left: int | None,
    right: int | None,
    softcap: float | None,
    dropout_p: float,
    scale: float,
    wanted: list[bool],
    joined: bool = False,  # what inductor keeps on disk may have been compiled before this was
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dq, dk, dv and dbias; those of q, k, v and bias that are not `wanted` are empty.

    With `joined` the first is all three, (B, T, H + 2 Hkv, D), and the next two are empty.
    A kernel whose results are not wanted is not launched. dk and dv come from one, so each costs what both do.
    """
    (B, T, H, D), (S, Hkv) = q.shape, k.shape[1:3]
    masks = Masks(False, (left, right), key_start, key_stop, segments, cu_seqlens_q, cu_seqlens_k, prefix)
    if not dispatch.launches(q):
        dq, dk, dv, dbias = _backward_by_reference(
            dy, q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale, wanted
        )
        if joined:
            dq, dk, dv = torch.cat([dq, dk, dv], dim=2), q.new_empty(0), q.new_empty(0)
        return dq, dk, dv, dbias
    results = _empty_gradients(q, k, v, bias, wanted, joined)
    dq, dk, dv, dbias = results
    if not (q.numel() and k.numel()):
        return dq.zero_(), dk.zero_(), dv.zero_(), dbias.zero_()
    if joined:
        dq, dk, dv = dq.split([H, Hkv, Hkv], dim=2)
    delta = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    call = call_arguments(q, k, masks, alibi_slopes, bias, softcap, dropout_p, seed, scale, backward=True)
    inputs = (q, k, v, dy, lse, delta)
    strides = (q.stride(), k.stride(), v.stride(), dy.stride())
    key = (T, S, right is None)

    def run_dk_dv(launch: configs.Launch) -> None:
        both = [x if one else k.new_empty(k.shape) for x, one in ((dk, wanted[1]), (dv, wanted[2]))]
        launched(_attention_dk_dv_kernel, cdiv(S, launch.block_n) * B * Hkv)(
            *inputs, *both, *strides, both[0].stride(), *call, **tiles(launch, D)
        )  # fmt: skip

    def run_dq(launch: configs.Launch) -> None:
        launched(_attention_dq_kernel, cdiv(T, launch.block_m) * B * H)(
            *inputs, dq, *strides, dq.stride(), *call, **tiles(launch, D)
        )  # fmt: skip

    def run_dbias(launch: configs.Launch) -> None:
        planes_b, planes_h = dbias.shape[:2]
        num_tiles = cdiv(T, launch.block_m) * cdiv(S, launch.block_n)
        launched(_attention_dbias_kernel, num_tiles * planes_b * planes_h)(
            *inputs, dbias, *strides, (B // planes_b, H // planes_h), *call, **tiles(launch, D)
        )  # fmt: skip

    with torch.cuda.device_of(q):
        launched(_attention_delta_kernel, cdiv(T, configs.DELTA_ROWS) * B * H)(
            y, dy, delta, y.stride(), dy.stride(), call.sizes,
            HEAD_DIM=D, BLOCK_D=configs.padded_width(D), BLOCK_M=configs.DELTA_ROWS, num_warps=4,
        )  # fmt: skip
        if wanted[1] or wanted[2]:
            configs.run("dk_dv", q, call.heavy, run_dk_dv, key)
        if wanted[0]:
            configs.run("dq", q, call.heavy, run_dq, key)
        if wanted[3]:
            configs.run("dbias", q, call.heavy, run_dbias, key)
    return results


@attention_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, T, H, _D = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


@attention_backward.register_fake
def _(dy: Tensor, y: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any):
    wanted, joined = [*rest[_NUM_TENSORS - 4 + _NUM_NUMBERS :], False][:2]  # a default is left out
    return _empty_gradients(q, k, v, bias, wanted, joined)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:_NUM_TENSORS])
    ctx.numbers = inputs[_NUM_TENSORS:]
    ctx.neighbours = are_neighbours(*inputs[:3])


def _differentiate(ctx: Any, dy: Tensor, _dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    y, lse, *tensors = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    joined = ctx.neighbours and all(wanted[:3])
    dq, dk, dv, dbias = attention_backward(dy, y, lse, *tensors, *ctx.numbers, wanted, joined)
    if joined:
        heads = [x.shape[2] for x in tensors[:3]]
        dq, dk, dv = dq.split(heads, dim=2)  # as `dim` of the model's own split: what joins the parts is taken away
    gradients = (dq, dk, dv, dbias)
    constants = _NUM_TENSORS - 4 + len(ctx.numbers)
    return *(x if one else None for x, one in zip(gradients, wanted, strict=True)), *[None] * constants


_NUM_TENSORS, _NUM_NUMBERS = 12, 5  # of the arguments of attention_forward, q to seed and left to scale
attention_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula([torch.ops.minillm_kernels.attention_forward, torch.ops.minillm_kernels.attention_decode])
def forward_flops(q_shape: Any, k_shape: Any, *_: Any, **__: Any) -> int:
    """Return 2 products' operations for all pairs, hidden ones too, as PyTorch counts its own attention."""
    (B, T, H, D), S = q_shape, k_shape[1]
    return 4 * B * H * T * S * D


@register_flop_formula(torch.ops.minillm_kernels.attention_backward)
def backward_flops(
    dy_shape: Any, y_shape: Any, lse_shape: Any, q_shape: Any, k_shape: Any, *rest: Any, **__: Any
) -> int:
    """Return the operations of scores, dP and one product for each of dq, dk, dv that is wanted: 5 for all.

    The kernels do 7 for all: the other 2 are their way, not the task.
    """
    wanted = rest[_NUM_TENSORS - 2 + _NUM_NUMBERS]
    return forward_flops(q_shape, k_shape) * (2 + sum(wanted[:3])) // 2


def are_neighbours(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether q, k and v lie as heads of one tensor (B, T, H + 2 Hkv, D) do, by their strides.

    It decides how gradients lie, never what they are. The stride over B is not asked: rows taken out of a longer
    product are neighbours too, and where T depends on data the compiler cannot compare it.

    >>> x = torch.zeros(2, 3, 4, 8)
    >>> are_neighbours(*x.split([2, 1, 1], dim=2)), are_neighbours(x, x, x)
    (True, False)
    """
    heads, D = q.shape[2] + k.shape[2] + v.shape[2], q.shape[3]
    token = heads * D, D, 1
    return all(x.stride()[1:] == token for x in (q, k, v)) and bool(q.shape[1] == k.shape[1])


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, wanted: list[bool], joined: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return room for the gradients, without gaps; for those that are not wanted none."""

    def room(x: Tensor | None, one: bool) -> Tensor:
        return q.new_empty(0) if x is None or not one else x.new_empty(x.shape)

    dbias = room(bias, wanted[3])
    if joined:
        (B, T, H, D), Hkv = q.shape, k.shape[2]
        return q.new_empty((B, T, H + 2 * Hkv, D)), q.new_empty(0), q.new_empty(0), dbias
    return room(q, wanted[0]), room(k, wanted[1]), room(v, wanted[2]), dbias


def _forward_by_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    seed: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    H = q.shape[2]
    raw = scale * reference.heads_first(q, H, torch.float32) @ reference.heads_first(k, H, torch.float32).mT
    lse = reference.scores(raw, masks, alibi_slopes, bias, softcap).logsumexp(-1) * LOG2E.value  # (B, H, T)
    y = reference.Attention.forward(
        _Context(), q, k, v, bias, masks, alibi_slopes, softcap, dropout_p, seed, scale
    )  # fmt: skip
    return y, lse.masked_fill(lse == -torch.inf, torch.inf)


def _backward_by_reference(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    seed: Tensor | None,
    scale: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ctx = _Context()
    reference.Attention.forward(ctx, q, k, v, bias, masks, alibi_slopes, softcap, dropout_p, seed, scale)
    gradients = reference.Attention.backward(ctx, dy)[:4]
    dq, dk, dv, dbias = (
        x.contiguous() if one and x is not None else q.new_empty(0) for x, one in zip(gradients, wanted, strict=True)
    )
    return dq, dk, dv, dbias


class _Context:
    """What autograd would hand `reference.Attention`; inside an op there is no autograd."""

    saved_tensors: tuple[Tensor | None, ...]
    scale: float

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors
