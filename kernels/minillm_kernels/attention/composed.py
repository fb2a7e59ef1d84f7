"""The `torch` backend of attention: PyTorch's scaled dot product attention, or batched products around a softmax.

The first cannot do a softcap, nor our dropout. Where both can do the work the faster one was chosen by measurement:
forward + backward in milliseconds, (B, T, H, D) = (32, 128, 4, 32), AMD EPYC with AVX2, PyTorch 2.13:

                                        PyTorch's    products
    float32, 1 thread, causal                22.9        28.8
    float32, 1 thread, causal, segments      25.2        34.6
    float32, 2 threads, causal               24.8        25.6
    float32, 2 threads, causal, segments     21.0        20.0
    float32, 1 thread, bias with gradient    38.7        30.4
    bfloat16, 1 thread, causal              105.7        46.9    forward alone: 11.9 and 15.0

At (2, 1024, 8, 64) causal in float32 on 2 threads PyTorch's takes 113, products 245. One query against a cache of 1024
keys: 0.3 and 0.4. On a CPU with AMX the products in bfloat16 were 2 to 6 times as fast as PyTorch's.

Read next: `../cross_entropy/__init__.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm_kernels.attention.masks import Masks
from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.philox import keep
from minillm_kernels.precision import without_autocast, working_dtype

_CPU = getattr(torch.cpu, "get_capabilities", dict)()  # what the processor can do; PyTorch 2.11 cannot tell
BF16_CPU = bool(_CPU.get("amx_bf16") or _CPU.get("avx512_bf16"))  # it multiplies bfloat16 matrices in hardware


@without_autocast
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
    T, S = q.shape[1], k.shape[1]
    needs_products = softcap is not None or dropout_p > 0 or needs_wide_scores(q, alibi_slopes, bias)
    if needs_products or products_are_faster(q, bias):
        added = added_to_scores(masks, alibi_slopes, bias, T, S, q.device, working_dtype(q.dtype))
        added = None if added is None else added.detach()  # the gradient of bias is taken by hand
        return BatchedProducts.apply(q, k, v, bias, added, softcap, dropout_p, seed, scale)
    square_causal = decided(masks.only_causal() and T == S and bias is None and alibi_slopes is None)
    if bias is None and alibi_slopes is None:
        mask = None if square_causal else masks.visible(T, S, q.device)
    else:
        mask = added_to_scores(masks, alibi_slopes, bias, T, S, q.device, q.dtype)
    y = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),  # (B, H, T, D)
        attn_mask=mask,
        is_causal=square_causal,
        scale=scale,
        enable_gqa=decided(q.shape[2] != k.shape[2]),
    )
    return y.transpose(1, 2)


def decided(condition: bool) -> bool:
    """Return a condition as a bool; one on sizes that torch.compile holds open is none, nor is `bool` of it."""
    return True if condition else False


def needs_wide_scores(q: Tensor, alibi_slopes: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether what is added to the scores would lose bits in the dtype of q, which PyTorch's attention asks for.

    In bfloat16 the steps of alibi are lost: 257 tokens are as far away as 256.
    """
    if q.dtype == working_dtype(q.dtype):
        return False
    return alibi_slopes is not None or (bias is not None and bias.dtype != q.dtype)


def products_are_faster(q: Tensor, bias: Tensor | None) -> bool:
    """Return whether batched products beat PyTorch's attention where both can do the work."""
    if q.device.type != "cpu":
        return False
    if bias is not None and bias.requires_grad:
        return True
    if q.dtype not in (torch.bfloat16, torch.float16):
        return False
    return product_dtype(q) == q.dtype or (q.requires_grad and torch.is_grad_enabled())


def product_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype in which `BatchedProducts` multiplies: its own, but float32 where a CPU has to emulate that."""
    emulated = q.device.type == "cpu" and not (q.dtype == torch.bfloat16 and BF16_CPU)
    return working_dtype(q.dtype) if emulated else q.dtype


def added_to_scores(
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    T: int,
    S: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return alibi and bias, and -inf where a key is hidden: (1 or B, 1 or H, 1 or T, 1 or S), or None for nothing."""
    added = None if bias is None else bias.to(dtype)
    if alibi_slopes is not None:
        distance = masks.distance(T, S, device).abs().to(dtype)  # (T, S)
        ramp = -alibi_slopes.detach().to(dtype)[:, None, None] * distance  # (H, T, S)
        added = ramp[None] if added is None else added + ramp
    seen = masks.visible(T, S, device)
    if seen is None:
        return added
    if added is None:
        added = torch.zeros(seen.shape, dtype=dtype, device=device)
    return added.masked_fill(~seen, -torch.inf)


class BatchedProducts(torch.autograd.Function):
    """attention as two batched matrix products forward and four backward, with few passes over the (T, S) weights.

    Backward takes only the products that the wanted gradients need: one for v; for q and k one that both share, and one
    each.

    The G = H / Hkv heads that read one key head are stacked: their queries become G * T rows of one product, so keys
    and values are never repeated. Equation numbers are those of `reference.py`.
    """

    @staticmethod
    @own_result
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        softcap: float | None,
        dropout_p: float,
        seed: int | Tensor | None,
        scale: float,
    ) -> Tensor:
        (B, T, H, _), (S, Hkv) = q.shape, k.shape[1:3]
        wide, narrow = working_dtype(q.dtype), product_dtype(q)
        queries, keys, values = (stacked(x, Hkv, narrow) for x in (q * scale, k, v))
        scores = torch.bmm(queries, keys.mT).to(wide)  # (1), (B * Hkv, G * T, S)
        tanh = None
        if softcap is not None:
            tanh = scores.mul_(1 / softcap).tanh_()
            scores = tanh * softcap  # (2)
        empty = None
        if added is not None and S:  # of no key there is nothing to add to, and no maximum
            empty = added.amax(-1, keepdim=True) == -torch.inf  # (1 or B, 1 or H, 1 or T, 1)
            # the softmax of a row of -inf would be NaN: an empty row sees everything, and y and dy are zeroed there
            scores.view(B, H, T, S).add_(added.masked_fill(empty, 0.0))  # (3)
        P = torch.softmax(scores, -1).to(narrow)  # (4)
        kept = None
        if dropout_p > 0 and seed is not None:
            kept = keep((B, H, T, S), dropout_p, seed, q.device).view(P.shape)
        y = torch.bmm(dropped(P, kept, dropout_p), values)  # (5), (6), (B * Hkv, G * T, D)
        ctx.save_for_backward(queries, keys, values, y, P, tanh, kept, empty)
        ctx.scale, ctx.dropout_p = scale, dropout_p
        ctx.shapes = (B, T, H, S, Hkv)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        y = unstacked(y, B, T, H)
        return (y if empty is None else y.masked_fill(empty.transpose(1, 2), 0.0)).to(q.dtype)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, y, P, tanh, kept, empty = ctx.saved_tensors
        B, T, H, S, Hkv = ctx.shapes
        dy = grads[0]
        dtype, narrow = dy.dtype, P.dtype
        if empty is not None:
            dy = dy.masked_fill(empty.transpose(1, 2), 0.0)
        dy = stacked(dy, Hkv, narrow)  # (B * Hkv, G * T, D)
        wide = working_dtype(narrow)
        q_wanted, k_wanted, v_wanted, bias_wanted, *_ = ctx.needs_input_grad
        dq = dk = dv = dbias = None
        if v_wanted:
            dv = torch.bmm(dropped(P, kept, ctx.dropout_p).mT, dy)  # (7)
            dv = unstacked(dv, B, S, Hkv).to(dtype)
        if not (q_wanted or k_wanted or bias_wanted):
            return None, None, dv, None, None, None, None, None, None
        dP = dropped(torch.bmm(dy, values.mT), kept, ctx.dropout_p).to(wide)  # (7), (8)
        # the sum of (10) is taken over d in place of the keys, by (20) of `backward.py`
        da = dP.sub_((dy.to(wide) * y).sum(-1, keepdim=True)).mul_(P)  # (10)
        if bias_wanted:
            shape, bias_dtype = ctx.bias
            dbias = da.view(B, H, T, S).sum_to_size(shape).to(bias_dtype)  # (11)
        draw = (da if tanh is None else (1 - tanh.square()).mul_(da)).to(narrow)  # (12); da may be dbias: it stays
        if q_wanted:
            dq = torch.bmm(draw, keys).mul_(ctx.scale)  # (13)
            dq = unstacked(dq, B, T, H).to(dtype)
        if k_wanted:
            dk = torch.bmm(draw.mT, queries)  # (13), (14); the queries hold the scale
            dk = unstacked(dk, B, S, Hkv).to(dtype)
        return dq, dk, dv, dbias, None, None, None, None, None


def dropped(weights: Tensor, kept: Tensor | None, dropout_p: float) -> Tensor:
    """Return the weights after dropout; the very same tensor where there is none."""
    return weights if kept is None else (weights * kept).mul_(1 / (1 - dropout_p))


def stacked(x: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """Return (B, T, Hx, D) as (B * num_groups, Hx / num_groups * T, D) in `dtype`."""
    B, T, Hx, D = x.shape
    return x.transpose(1, 2).to(dtype).reshape(B * num_groups, Hx // num_groups * T, D)


def unstacked(x: Tensor, B: int, T: int, num_heads: int) -> Tensor:
    """Return what `stacked` made, as (B, T, num_heads, D)."""
    return x.view(B, num_heads, T, x.shape[-1]).transpose(1, 2)
