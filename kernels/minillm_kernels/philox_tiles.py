r"""The random numbers of `philox.py` in a kernel: four elements for one block of ten rounds.

By (3) there, columns c .. c + 3 of a row, c divisible by 4, have the four words of one block. A tile draws one block
for every four of its elements, and `tl.join` puts the words side by side: joining (w0, w2) and (w1, w3), and then the
two, leaves a trailing (2, 2) that reads w0, w1, w2, w3.

Read next: `dropout/fused.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _numbers(seed, row, block):
    """Return the four numbers in [0, 1) of each block: (..., 2, 2), where `row` and `block` broadcast to (...)."""
    row, block = tl.broadcast(row.to(tl.int64), block.to(tl.int64))  # pyright: ignore[reportGeneralTypeIssues]
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), low * 0, low, high)  # pyright: ignore[reportGeneralTypeIssues]
    return tl.uint_to_uniform_float(tl.join(tl.join(w0, w2), tl.join(w1, w3)))


@triton.jit
def uniform_row(seed, row, start, BLOCK_C: tl.constexpr):
    """Return the numbers (BLOCK_C,) of one row, columns `start`, which 4 divides, and on."""
    block = start // 4 + tl.arange(0, BLOCK_C // 4)
    return tl.reshape(_numbers(seed, row, block), (BLOCK_C,))


@triton.jit
def uniform_tile(seed, rows, start, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the numbers (BLOCK_R, BLOCK_C) of `rows` (BLOCK_R, 1), columns `start`, which 4 divides, and on."""
    block = (start // 4 + tl.arange(0, BLOCK_C // 4))[None, :]
    return tl.reshape(_numbers(seed, rows, block), (BLOCK_R, BLOCK_C))


@triton.jit
def uniform_tile_across(seed, rows, start, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the transpose of `uniform_tile`, (BLOCK_C, BLOCK_R), for `rows` (1, BLOCK_R)."""
    block = (start // 4 + tl.arange(0, BLOCK_C // 4))[:, None]
    numbers = tl.permute(_numbers(seed, rows, block), (0, 2, 3, 1))  # (BLOCK_C / 4, 2, 2, BLOCK_R)
    return tl.reshape(numbers, (BLOCK_C, BLOCK_R))
