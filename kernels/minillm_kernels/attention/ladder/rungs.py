"""The rungs in their order, and after them the kernels of the library and PyTorch's own, for the comparison.

Read next: `naive.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

import minillm_kernels as mk
from minillm_kernels.attention.ladder import backward, causal, naive, online, tiled


@dataclass(frozen=True)
class Rung:
    """name: of its file. attention: of q, k, v. has_gradient: whether it has a backward pass.

    largest_tile: numbers that it wants in one tile, T * D, at most.
    """

    name: str
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    has_gradient: bool = False
    largest_tile: float = float("inf")


def _ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with mk.backend("fused"):
        return mk.attention(q, k, v, causal=True)


def _pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


RUNGS = (
    Rung("naive", naive.attention, largest_tile=2**20),
    Rung("tiled", tiled.attention),
    Rung("online", online.attention),
    Rung("causal", causal.attention),
    Rung("backward", backward.attention, has_gradient=True),
    Rung("library", _ours, has_gradient=True),
    Rung("pytorch", _pytorch, has_gradient=True),
)
