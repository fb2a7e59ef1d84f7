"""rotary: turn pairs of query and key columns by an angle that grows with the position.

Read next: `reference.py`, then `../dropout/__init__.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.precision import working_dtype
from minillm_kernels.rotary import composed, reference

__all__ = ["rotary"]


def rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    positions: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate each pair of columns (first, second) of every head by the angle of its position and pair.

        first'  = first * cos[position, i] - second * sin[position, i]
        second' = first * sin[position, i] + second * cos[position, i],     i = 0 .. D/2 - 1
        pair i is columns (i, i + D/2); with `interleaved` columns (2i, 2i + 1)

    Args:
        q: queries (B, T, H, D), any floating dtype, D even.
        k: keys (B, T, Hkv, D), the dtype of `q`.
        cos, sin: tables (P, D/2), float32 (float64 for float64 `q`) or converted to it; row p belongs to position p.
        positions: (B, T) int64, each in [0, P); None: 0 .. T-1.
        interleaved: False: pairs half a head apart (Llama, GPT-NeoX); True: neighbours (RoFormer, GPT-J).
    Returns:
        q and k rotated, (B, T, H, D) and (B, T, Hkv, D) in their dtype; the maths in between is in float32.
    Raises:
        ValueError: a shape, a device, more positions than the tables have rows, or a position outside of them
            (positions are looked at on the CPU only: elsewhere that would wait for the device; what the kernel finds
            outside of the tables it turns into NaN).
        TypeError: dtypes that differ or are not floating, positions that are not int64.

    Cost: reads and writes `q` and `k` once, 3 operations an element: bound by memory. No gradient for the tables.
    Source: Su et al. (2021), arXiv:2104.09864.

    >>> q = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    >>> cos, sin = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])  # a quarter turn per position
    >>> rotary(q, q, cos, sin, positions=torch.tensor([[1]]))[0].flatten()
    tensor([0., 1.])
    """
    _check(q, k, cos, sin, positions)
    match dispatch.choose("rotary", q):
        case "fused":
            from minillm_kernels.rotary import fused

            return fused.rotary(q, k, cos, sin, positions, interleaved)
        case "reference":
            return reference.rotary(q, k, *_rows(q, cos, sin, positions), interleaved)
        case _:
            return composed.rotary(q, k, *_rows(q, cos, sin, positions), interleaved)


def _rows(q: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tables' rows at the positions, each (1 or B, T, 1, D/2) in the working dtype, without gradient."""
    cos, sin = (
        table[None, : q.shape[1]] if positions is None else table[positions] for table in (cos.detach(), sin.detach())
    )
    wide = working_dtype(q.dtype)
    return cos[:, :, None, :].to(wide), sin[:, :, None, :].to(wide)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> None:
    checks.floating("q", q)
    checks.rank("q", q, "B T H D")
    checks.rank("k", k, "B T Hkv D")
    B, T, _, D = q.shape
    checks.shape("k", k, (B, T, k.shape[2], D), "with the batch, length and head width of q")
    checks.same_dtype("q", q, k=k)
    if D % 2:
        raise ValueError(f"rotary turns pairs of columns: the head width must be even, got {D}")
    checks.rank("cos", cos, "P D/2")
    checks.shape("cos", cos, (cos.shape[0], D // 2), "half the head width of q")
    checks.shape("sin", sin, tuple(cos.shape), "the shape of cos")
    checks.floating("cos", cos)
    checks.same_dtype("cos", cos, sin=sin)
    if positions is not None:
        checks.shape("positions", positions, (B, T), "the batch and length of q")
    checks.same_device("q", q, k=k, cos=cos, sin=sin, positions=positions)
    if positions is None:
        if cos.shape[0] < T:
            raise ValueError(f"q has {T} positions, the tables only {cos.shape[0]} rows; make longer tables")
        return
    if positions.dtype != torch.int64:
        raise TypeError(f"positions must be int64, got {positions.dtype}; convert them first")
    checks.indices("positions", positions, cos.shape[0], "the rows of the tables")
