"""What the rungs share: the rows of one head, and the launch.

Read next: `naive.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x * log2(e)), and exp2 is what a GPU has


@triton.jit
def row_pointers(ptr, batch, head, rows, num_rows, num_heads, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return pointers (rows, BLOCK_D) into a contiguous (B, T, H, D) tensor, and where they are inside it."""
    columns = tl.arange(0, BLOCK_D)
    first = (batch.to(tl.int64) * num_rows + rows.to(tl.int64)) * num_heads + head
    inside = (rows < num_rows)[:, None] & (columns < HEAD_DIM)[None, :]
    return ptr + first[:, None] * HEAD_DIM + columns[None, :], inside


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument."""
    first = arguments[0]
    assert isinstance(first, Tensor)
    if first.is_cuda:
        with torch.cuda.device(first.device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


def tile_of(q: Tensor) -> int:
    """Return the rows of a tile: few where Triton is interpreted, so that small inputs have several."""
    return 64 if q.is_cuda else 16
