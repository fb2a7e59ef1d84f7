r"""attention by hand, forward and backward.

For one row of the batch and one head h, with key head h // (H / Hkv), queries i, keys j, and w the softcap:

    raw_ij = scale * sum_d q_id * k_jd                                          (1)
    t_ij = tanh(raw_ij / w),   s_ij = w * t_ij  (without softcap s = raw)       (2)
    a_ij = s_ij - slope_h * |distance(i, j)| + bias_ij, and -inf where hidden   (3)
    P_ij = exp(a_ij - m_i) / sum_j exp(a_ij - m_i),   m_i = max_j a_ij          (4)  a row with no visible key: P = 0
    Z_ij = keep_ij * P_ij / (1 - p)                                             (5)
    y_id = sum_j Z_ij * v_jd                                                    (6)

Backward, from dy:

    dv_jd = sum_i Z_ij * dy_id,   dZ_ij = sum_d dy_id * v_jd                    (7)  (6) is bilinear
    dP_ij = keep_ij * dZ_ij / (1 - p)                                           (8)  from (5)
    d P_ij / d a_ik = P_ij * ((j = k) - P_ik)                                   (9)  from (4)
    da_ij = P_ij * (dP_ij - sum_k P_ik * dP_ik)                                 (10) by (9); 0 where P = 0: hidden keys
                                                                                     and empty rows give none
    dbias = da, summed over the rows and heads that share an element            (11) from (3)
    draw_ij = da_ij * (1 - t_ij^2)                                              (12) from (2), as tanh' = 1 - tanh^2
    dq_id = scale * sum_j draw_ij * k_jd,   dk_jd = scale * sum_i draw_ij * q_id    (13) (1) is bilinear
    dk and dv of a key head are the sums over the H / Hkv query heads that read it  (14)

One numbering serves all files of this op. What the kernels do in another way, and why that is the same, goes on from
here: `forward.py` has (15) to (19), from what leaves a softmax as it is to the softmax of keys that come in tiles,
`backward.py` (20), the sum of (10) without a pass over the keys, and `decode.py` (21), keys in splits.

Read next: `composed.py`, then `../cross_entropy/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.attention.masks import Masks
from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.philox import uniform
from minillm_kernels.precision import without_autocast, working_dtype


def heads_first(x: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Return (B, T, Hx, D) as (B, H, T, D) in `dtype`, each of the Hx heads repeated for the H / Hx that read it."""
    return x.to(dtype).transpose(1, 2).repeat_interleave(num_heads // x.shape[2], dim=1)


def softmax_over_visible(scores: Tensor) -> Tensor:
    """Return the softmax of each row; a row that is -inf throughout gives zeros."""
    if not scores.shape[-1]:
        return scores  # of no key there is no maximum
    maximum = scores.amax(-1, keepdim=True)
    exps = (scores - maximum.masked_fill(maximum == -torch.inf, 0.0)).exp()  # (..., T, S)
    total = exps.sum(-1, keepdim=True)
    return exps / total.masked_fill(total == 0.0, 1.0)  # (4)


def scores(
    raw: Tensor, masks: Masks, alibi_slopes: Tensor | None, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """Return equations (2) and (3) for raw products (B, H, T, S)."""
    T, S = raw.shape[-2:]
    total = raw if softcap is None else softcap * (raw / softcap).tanh()  # (2)
    if alibi_slopes is not None:
        distance = masks.distance(T, S, raw.device).abs().to(raw.dtype)  # (T, S)
        total = total - alibi_slopes.detach().to(raw.dtype)[:, None, None] * distance
    if bias is not None:
        total = total + bias.to(raw.dtype)
    seen = masks.visible(T, S, raw.device)
    return total if seen is None else total.masked_fill(~seen, -torch.inf)  # (3)


@without_autocast
def attention_weights(
    q: Tensor,
    k: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    """Return P of equation (4), (B, H, T, S); arguments as in the public function."""
    H, wide = q.shape[2], working_dtype(q.dtype)
    raw = scale * heads_first(q, H, wide) @ heads_first(k, H, wide).mT  # (1)
    return softmax_over_visible(scores(raw, masks, alibi_slopes, bias, softcap)).to(q.dtype)


class Attention(torch.autograd.Function):
    """Equations (1) to (14), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        masks: Masks,
        alibi_slopes: Tensor | None,
        softcap: float | None,
        dropout_p: float,
        seed: int | Tensor | None,
        scale: float,
    ) -> Tensor:
        H, wide = q.shape[2], working_dtype(q.dtype)
        raw = scale * heads_first(q, H, wide) @ heads_first(k, H, wide).mT  # (1), (B, H, T, S)
        P = softmax_over_visible(scores(raw, masks, alibi_slopes, bias, softcap))  # (2), (3), (4)
        keep = None
        if dropout_p > 0 and seed is not None:
            keep = (uniform(seed, tuple(P.shape), P.device) >= dropout_p).to(wide) / (1 - dropout_p)
        y = (P if keep is None else keep * P) @ heads_first(v, H, wide)  # (5), (6), (B, H, T, D)
        ctx.save_for_backward(q, k, v, bias, P, keep, None if softcap is None else (raw / softcap).tanh())
        ctx.scale = scale
        return y.transpose(1, 2).to(q.dtype).contiguous()

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, P, keep, tanh = ctx.saved_tensors
        B, T, H, D = q.shape
        Hkv, wide = k.shape[2], P.dtype
        dy = heads_first(grads[0], H, wide)  # (B, H, T, D)
        dv = (P if keep is None else keep * P).mT @ dy  # (7), (B, H, S, D)
        dZ = dy @ heads_first(v, H, wide).mT  # (7), (B, H, T, S)
        dP = dZ if keep is None else keep * dZ  # (8)
        da = P * (dP - (P * dP).sum(-1, keepdim=True))  # (10)
        draw = da if tanh is None else da * (1 - tanh.square())  # (12)
        dq = ctx.scale * draw @ heads_first(k, H, wide)  # (13), (B, H, T, D)
        dk = ctx.scale * draw.mT @ heads_first(q, H, wide)  # (13), (B, H, S, D)
        dk, dv = (g.unflatten(1, (Hkv, H // Hkv)).sum(2) for g in (dk, dv))  # (14), (B, Hkv, S, D)
        dq, dk, dv = (g.transpose(1, 2).to(q.dtype) for g in (dq, dk, dv))
        dbias = None if bias is None else da.sum_to_size(bias.shape).to(bias.dtype)  # (11)
        return dq, dk, dv, dbias, None, None, None, None, None, None


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
    return Attention.apply(q, k, v, bias, masks, alibi_slopes, softcap, dropout_p, seed, scale)
