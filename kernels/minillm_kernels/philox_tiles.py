r"""Which elements stay, by `philox.py`, in a kernel: eight elements for one block of seven rounds.

By (3) there, columns c .. c + 7 of a row, c divisible by 8, have the eight halves of the words of one block. A tile
draws one block for every eight of its elements, and `tl.join` puts the halves side by side: joining (w0, w2) and
(w1, w3), then the two, leaves a trailing (2, 2) that reads w0, w1, w2, w3; joining the lower halves of that and the
upper ones, a trailing (2, 2, 2) that reads both halves of w0, and so on.

Read next: `dropout/fused.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm_kernels import philox

NUM_ROUNDS = tl.constexpr(philox.NUM_ROUNDS)
COLUMNS = tl.constexpr(philox.COLUMNS)
STEPS = tl.constexpr(philox.STEPS)


@triton.jit
def _kept(seed, row, block, p):
    """Return which elements of each block stay: (..., 2, 2, 2), where `row` and `block` broadcast to (...)."""
    row, block = tl.broadcast(row.to(tl.int64), block.to(tl.int64))  # pyright: ignore[reportGeneralTypeIssues]
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), low * 0, low, high, NUM_ROUNDS)  # pyright: ignore[reportGeneralTypeIssues]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    least = tl.ceil(p * STEPS).to(tl.uint32)  # whole numbers are compared: no number in [0, 1) is made
    return tl.join((words & (STEPS - 1)) >= least, (words >> 16) >= least)


@triton.jit
def kept_row(seed, row, start, p, BLOCK_C: tl.constexpr):
    """Return which elements (BLOCK_C,) of one row stay, from column `start` on; 8 divides it."""
    block = tl.arange(0, BLOCK_C // COLUMNS) + start // COLUMNS
    return tl.reshape(_kept(seed, row, block, p), (BLOCK_C,))


@triton.jit
def kept_tile(seed, rows, start, p, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return which elements (BLOCK_R, BLOCK_C) of `rows` (BLOCK_R, 1) stay, from column `start` on; 8 divides it."""
    block = (tl.arange(0, BLOCK_C // COLUMNS) + start // COLUMNS)[None, :]
    return tl.reshape(_kept(seed, rows, block, p), (BLOCK_R, BLOCK_C))


@triton.jit
def kept_tile_across(seed, rows, start, p, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the transpose of `kept_tile`, (BLOCK_C, BLOCK_R), for `rows` (1, BLOCK_R)."""
    block = (tl.arange(0, BLOCK_C // COLUMNS) + start // COLUMNS)[:, None]
    kept = tl.permute(_kept(seed, rows, block, p), (0, 2, 3, 4, 1))  # (BLOCK_C / 8, 2, 2, 2, BLOCK_R)
    return tl.reshape(kept, (BLOCK_C, BLOCK_R))
