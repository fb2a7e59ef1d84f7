"""The `torch` backend of rotary.

Read next: `../dropout/__init__.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return q and k rotated; cos and sin are (1 or B, T, 1, D/2)."""
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        pair = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
        return pair.flatten(-2).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
