"""attention: each query's weighted mean of the values, and the weights themselves.

Read next: `masks.py` for who sees whom, `reference.py` for the maths, `composed.py` for what runs without a kernel. For
the kernels: `ladder/__init__.py`, a climb in five rungs, then `scores.py`, `forward.py`, `backward.py`, `decode.py`;
`hopper.py` is the forward pass once more, for one kind of GPU.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.attention import composed, reference
from minillm_kernels.attention.masks import Masks, Window

__all__ = ["attention", "attention_weights"]

MAX_FUSED_WIDTH = 256  # of a head: two tiles of twice that do not fit a GPU's shared memory


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window = (None, None),
    key_start: Tensor | None = None,
    key_stop: Tensor | None = None,
    segments: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    prefix: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Mean of the values that a query sees, weighted by the softmax of its products with their keys.

        raw[i, j] = scale * <q_i, k_j>
        s[i, j] = softcap * tanh(raw[i, j] / softcap)         (without softcap: s = raw)
        score[i, j] = s[i, j] - alibi_slope * |distance(i, j)| + bias[i, j]
        weight[i, :] = dropout(softmax over visible j of score[i, :])
        y_i = sum_j weight[i, j] * v_j

    Query i stands at key position i + S - T, the last query level with the last key: distance(i, j) = j - (i + S - T).

    Args:
        q: queries (B, T, H, D), any floating dtype.
        k, v: keys and values (B, S, Hkv, D) in the dtype of `q`; Hkv divides H, and head h reads h // (H / Hkv).
        causal: hide keys after the query.
        window: (left, right): show keys with -left <= distance <= right; None: no bound on that side. With causal right
            is None or 0.
        key_start, key_stop: (B,) integers: show keys key_start <= j < key_stop, for padding on either side.
        segments: (B, T) integers, T = S: show keys of the query's own document.
        cu_seqlens_q, cu_seqlens_k: (N + 1,) integers 0, ..., T and 0, ..., S: B = 1 and N sequences stand end to end,
            each attending as if alone. Without cu_seqlens_k the keys have the queries' bounds.
        prefix: (B,) integers: keys j < prefix are shown to all queries, whatever `causal` and `window` say.
        alibi_slopes: (H,) float; constants, without gradient.
        bias: (1 or B, 1 or H, T, S), any floating dtype, with gradient; -inf hides a key.
        softcap: bound of the scores before alibi and bias.
        dropout_p: share of the weights that is dropped; the others are scaled by 1 / (1 - dropout_p). The random number
            of a weight belongs to its row (b * H + h) * T + i and column j; see `../philox.py`.
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0.
        scale: D ** -0.5 unless given.
    Returns:
        (B, T, H, D) in the dtype of `q`. A query that sees no key gets zeros, and gives no gradient.
    Raises:
        ValueError: a shape, device, probability, missing seed, or masks at odds; the text shows what came. The numbers
            of cu_seqlens are looked at on the CPU only, where that waits for nothing.
        TypeError: a dtype that is not floating, keys or values in another one than the queries, masks or a window that
            are not of integers, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: 4 * B * H * T * S * D operations forward, 2.5 times that backward, 0.5 less for each of q, k, v that does not
        learn; causal needs half of it. The kernels spend 3.5 times backward: `backward.py` says on what.
    Source: Vaswani et al. (2017), arXiv:1706.03762.

    >>> import torch
    >>> q, k = torch.tensor([0.0, 9.0]).view(1, 2, 1, 1), torch.tensor([5.0, -5.0]).view(1, 2, 1, 1)
    >>> attention(q, k, torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)).flatten()
    tensor([2., 1.])
    """
    masks = Masks(causal, window, key_start, key_stop, segments, cu_seqlens_q, cu_seqlens_k, prefix)
    _check_products(q, k, masks, alibi_slopes, bias, softcap, scale)
    checks.shape("v", v, k.shape, "the shape of k")
    checks.same_dtype("q", q, v=v)
    checks.same_device("q", q, v=v)
    checks.dropout(dropout_p, seed)
    if isinstance(seed, Tensor):
        checks.same_device("q", q, seed=seed)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    match dispatch.choose("attention", q, _obstacle(q, bias)):
        case "fused":
            from minillm_kernels.attention import fused

            return fused.attention(q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, factor)
        case "reference":
            return reference.attention(q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, factor)
        case _:
            return composed.attention(q, k, v, masks, alibi_slopes, bias, softcap, dropout_p, seed, factor)


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool = False,
    window: Window = (None, None),
    key_start: Tensor | None = None,
    key_stop: Tensor | None = None,
    segments: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    prefix: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the weights that `attention` gives the values, before dropout: for looking at, not for speed.

    Args: as for `attention`.
    Returns:
        (B, H, T, S) in the dtype of `q`; each row sums to 1, or is 0 where a query sees no key. Differentiable.
    Raises:
        ValueError, TypeError: as `attention`.

    Cost: keeps B * H * T * S elements, on every backend.

    >>> import torch
    >>> attention_weights(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), causal=True)
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    masks = Masks(causal, window, key_start, key_stop, segments, cu_seqlens_q, cu_seqlens_k, prefix)
    _check_products(q, k, masks, alibi_slopes, bias, softcap, scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return reference.attention_weights(q, k, masks, alibi_slopes, bias, softcap, factor)


def _obstacle(q: Tensor, bias: Tensor | None) -> str:
    """Return why the kernels cannot serve a call; nothing when they can."""
    if q.shape[-1] > MAX_FUSED_WIDTH:
        return f"heads of width {q.shape[-1]} are past the kernels' {MAX_FUSED_WIDTH}"
    if bias is not None and bias.dtype == torch.float64:
        return "a float64 bias has no kernel"
    return ""


def _check_products(
    q: Tensor,
    k: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    scale: float | None,
) -> None:
    """Raise unless everything that the scores are made of fits together."""
    checks.floating("q", q)
    checks.rank("q", q, "B T H D")
    checks.rank("k", k, "B S Hkv D")
    B, T, H, D = q.shape
    S, Hkv = k.shape[1:3]
    checks.shape("k", k, (B, S, Hkv, D), "the batch and width of q")
    if H == 0 or D == 0:
        raise ValueError(f"q must have 1 head or more, and heads of width 1 or more, got {checks.shape_of(q)}")
    if Hkv == 0 or H % Hkv:
        raise ValueError(f"the heads of k ({Hkv}) must divide the heads of q ({H}); repeat or drop some")
    checks.same_dtype("q", q, k=k)
    _check_masks(masks, B, T, S)
    if alibi_slopes is not None:
        checks.floating("alibi_slopes", alibi_slopes)
        checks.shape("alibi_slopes", alibi_slopes, (H,), "one slope a head")
    if bias is not None:
        checks.floating("bias", bias)
        checks.rank("bias", bias, "B H T S")
        batch, heads = bias.shape[:2]
        checks.shape("bias", bias, (1 if batch == 1 else B, 1 if heads == 1 else H, T, S), "(1 or B, 1 or H, T, S)")
    checks.softcap(softcap)
    if scale is not None:
        checks.finite("scale", scale)
    checks.same_device("q", q, k=k, **masks.tensors(), alibi_slopes=alibi_slopes, bias=bias)


def _check_bounds(name: str, bounds: list[int]) -> None:
    """Raise ValueError unless bounds begin with 0 and never fall: of others each backend would make something else."""
    if bounds and (bounds[0] != 0 or any(b < a for a, b in pairwise(bounds))):
        place = next((i for i, (a, b) in enumerate(pairwise(bounds), 1) if b < a), 0)
        raise ValueError(
            f"{name} must be 0, ..., each at least the one before, got {bounds[place]} at [{place}]; "
            "pass the running sums of the lengths, 0 first"
        )


def _check_masks(masks: Masks, B: int, T: int, S: int) -> None:
    for name, mask in masks.tensors().items():
        if mask is not None and name in ("key_start", "key_stop", "prefix"):
            checks.shape(name, mask, (B,), "one number a row")
        if mask is not None:
            checks.integers(name, mask)
    if not isinstance(masks.window, (tuple, list)) or len(masks.window) != 2:
        raise ValueError(f"window must be (left, right), got {masks.window!r}; pass (None, None) for no bound")
    for side in masks.window:
        if side is None:
            continue
        if not isinstance(side, (int, torch.SymInt)):  # one of numpy's has few bits: -np.uint8(5) is 251
            raise TypeError(f"window must be (left, right) in whole tokens, got {masks.window}; pass integers or None")
        if not 0 <= side < 2**63:
            raise ValueError(
                f"window must be (left, right), each 0 or more and of 64 bits, or None, got {masks.window}"
            )
    left, right = masks.window
    if masks.causal and right is not None and right > 0:
        raise ValueError(
            f"causal=True hides the keys that window={masks.window} would show on the right of a query; "
            f"pass window={(left, 0)}, or causal=False"
        )
    if masks.segments is not None:
        checks.shape("segments", masks.segments, (B, T), "the batch and length of q")
        if T != S:
            raise ValueError(
                f"segments need as many keys as queries, got T={T}, S={S}; use cu_seqlens_q and cu_seqlens_k"
            )
    if masks.cu_seqlens_q is None:
        if masks.cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k came without cu_seqlens_q; pass both")
        return
    checks.rank("cu_seqlens_q", masks.cu_seqlens_q, "N+1")
    if masks.cu_seqlens_q.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens_q must be (N+1,), 0, ..., T, for N sequences, got {checks.shape_of(masks.cu_seqlens_q)}; "
            "pass both ends of one sequence at least"
        )
    if B != 1:
        raise ValueError(f"cu_seqlens need a batch of 1 with the sequences end to end, got B={B}")
    if masks.cu_seqlens_k is not None:
        checks.shape(
            "cu_seqlens_k", masks.cu_seqlens_k, tuple(masks.cu_seqlens_q.shape), "as many bounds as cu_seqlens_q"
        )
    elif T != S:
        raise ValueError(f"cu_seqlens_q alone needs as many keys as queries, got T={T}, S={S}; pass cu_seqlens_k too")
    for name, bounds in (("cu_seqlens_q", masks.cu_seqlens_q), ("cu_seqlens_k", masks.cu_seqlens_k)):
        if bounds is not None and checks.can_look(bounds):
            _check_bounds(name, bounds.tolist())
