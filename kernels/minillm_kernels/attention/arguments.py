"""What a call of attention hands its kernels: masks, terms of the score, dropout and sizes, as `scores.py` names them.

Read next: `fused.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from minillm_kernels.attention import configs
from minillm_kernels.attention.masks import Masks
from minillm_kernels.attention.scores import Dropout, Sizes, Terms, Visibility
from minillm_kernels.attention.spans import key_spans, query_spans

LEAST_SCALE = 2.0**-126  # of float32's normal numbers: a kernel would take a smaller scale for 0, and 0 * -inf is NaN


class Call(NamedTuple):
    """The arguments that all kernels of a call share."""

    see: Visibility
    terms: Terms
    drop: Dropout
    sizes: Sizes

    @property
    def heavy(self) -> bool:
        """Whether the scores take the table's smaller tiles."""
        return configs.is_heavy(self.see, self.terms, self.drop)


def call_arguments(
    q: Tensor,
    k: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    seed: Tensor | None,
    scale: float,
    backward: bool = False,
) -> Call:
    """Return the arguments of one call; `backward`: whether its kernels walk the queries of a key."""
    (B, T, H, _), (S, Hkv) = q.shape, k.shape[1:3]
    # no distance is further than T + S: a wider window is none, and its numbers stay in int32
    left, right = (None if side is None or side >= T + S else side for side in masks.window)
    see = Visibility(
        left=left,
        right=right,
        key_start=packed(masks.key_start),
        key_stop=packed(masks.key_stop),
        prefix=packed(masks.prefix),
        segments=packed(masks.segments),
        spans=query_spans(masks, B, T, S, q.device),
        key_spans=key_spans(masks, B, T, S, q.device) if backward else None,
    )
    return Call(
        see, terms(alibi_slopes, bias, softcap, scale), dropout(dropout_p, seed), Sizes(T, S, H, H // Hkv)
    )  # fmt: skip


def terms(alibi_slopes: Tensor | None, bias: Tensor | None, softcap: float | None, scale: float) -> Terms:
    """Return what scores are made of, as the kernels take it."""
    strides = (None, None, None, None)
    if bias is not None:
        shared = (bias.shape[0] == 1, bias.shape[1] == 1, False, False)
        strides = tuple(0 if one else stride for one, stride in zip(shared, bias.stride(), strict=True))
    return Terms(
        scale=float(scale),
        folds=1 if scale >= LEAST_SCALE else None,
        softcap=None if softcap is None else float(softcap),
        alibi=packed(alibi_slopes),
        bias=bias,
        bias_b=strides[0],
        bias_h=strides[1],
        bias_t=strides[2],
        bias_s=strides[3],
    )


def dropout(p: float, seed: Tensor | None) -> Dropout:
    """Return the dropout as the kernels take it."""
    return Dropout(None, None, None) if seed is None else Dropout(float(p), seed, 1.0 / (1.0 - p))


def launched(kernel: Any, *grid: int) -> Any:
    """Return a kernel bound to its grid. The kernels' own types are those of device code, which no caller's fit."""
    return kernel[grid]


def tiles(launch: configs.Launch, D: int) -> dict[str, int]:
    """Return the keyword arguments that a kernel takes for its tiles."""
    return {
        "HEAD_DIM": D,
        "BLOCK_D": configs.padded_width(D),
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }


def packed(x: Tensor | None) -> Tensor | None:
    """Return a small tensor without gaps, as the kernels read masks."""
    return None if x is None else x.contiguous()
