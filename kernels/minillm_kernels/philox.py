r"""Philox 4x32-10: random numbers as a pure function of a seed and a place in a tensor, on every backend the same.

Every dropout in this package asks `keep` whether an element stays. The answer depends on the seed, the element's row
and its column alone, so it is the same on every backend, in a recomputed forward pass and after a resumed run.

One block of four 32-bit words (c0, c1, c2, c3) is mixed in ten rounds under the key (k0, k1). With M = 2^32 - 1,
hi and lo the upper and lower words of a 64-bit product, and the constants A, B of the paper:

    (c0, c1, c2, c3) <- (hi(B * c2) ^ c1 ^ k0,  lo(B * c2),  hi(A * c0) ^ c3 ^ k1,  lo(A * c0))      (1)
    (k0, k1)         <- (k0 + KEY_A, k1 + KEY_B) mod 2^32                                            (2)

The block's four words serve four neighbours of a row. With r the row, the linear index over all axes but the last, and
c the column, an element has

    word c mod 4 of the block with counter (c / 4, 0, r mod 2^32, r / 2^32), key (seed mod 2^32, seed / 2^32)      (3)

so a tile that begins at a column divisible by 4 needs no more blocks than it has elements / 4, however wide a row is.
PyTorch has no full set of unsigned ops, so the words live in int64. A product that passes 2^63 wraps, which leaves all
its 64 bits right; a word is masked to 32 bits only before it is multiplied again.

Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3"; the conversion to float32 is Triton's.

Read next: `philox_tiles.py`, the same in a kernel; then `dropout/__init__.py`.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_NUM_ROUNDS = 10
_TO_UNIFORM = 4.6566127342e-10  # just under 2^-31: the largest int32 times it stays below 1 in float32
_WORDS = 4  # of a block
_CHUNK = 1 << 15  # blocks a thread at a time: what they need stays in the cache of a core, which halves the time


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, ...]:
    """Return the four words that ten rounds make of `counter` under `key`, each int64 in [0, 2^32).

    Args:
        counter: four int64 tensors, with values in [0, 2^32), that broadcast; the words have their common shape.
        key: two words in [0, 2^32), ints or 0-dim int64 tensors.

    Cost: 100 operations on tensors of the common shape, and less where the counters are smaller: of a column of rows
        and a row of blocks the first two rounds are almost free.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product_a, product_b = c0 * _ROUND_A, c2 * _ROUND_B
        # (1); `>>` copies the sign bit into the upper half and c1, c3 keep theirs: the mask at the end clears both
        c0 = ((product_b >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = ((product_a >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = product_b, product_a
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK  # (2)
    return c0, c1 & _MASK, c2, c3 & _MASK


def uniform(seed: int | Tensor, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Return one number in [0, 1) for each element of a tensor of `shape`, by (3).

    Args:
        seed: int or 0-dim int64 tensor; all 64 bits count.
        shape: any; of a 0-dim tensor the one element has row and column 0.
    Returns:
        float32 in `shape`, bit-equal to what `philox_tiles.uniform_tile` gives.

    Cost: about 25 integer operations an element.

    >>> uniform(7, (2, 3))
    tensor([[0.0908, 0.4997, 0.2284],
            [0.9901, 0.3435, 0.6224]])
    """
    rows, columns, blocks = _extents(shape)
    numbers = torch.stack([_number(word) for word in _words(seed, (0, rows), (0, blocks), device)], -1)
    return numbers.view(rows, blocks * _WORDS)[:, :columns].reshape(shape)


def keep(shape: tuple[int, ...], p: float, seed: int | Tensor, device: torch.device | str) -> Tensor:
    """Return which elements of a tensor of `shape` survive dropout: those with uniform(seed, shape) >= p.

    Args:
        shape: any.
        p: probability of being dropped, in [0, 1).
        seed: int or 0-dim int64 tensor.
    Returns:
        bool in `shape`.

    Cost: on a CPU it runs a chunk at a time, so that the words stay in the cache.

    >>> keep((2, 3), 0.4, 7, "cpu")
    tensor([[False,  True, False],
            [ True, False,  True]])
    """
    if torch.device(device).type != "cpu" or torch.compiler.is_compiling():
        return uniform(seed, shape, device) >= p
    rows, columns, blocks = _extents(shape)
    kept = torch.empty(rows, blocks, _WORDS, dtype=torch.bool)
    least = _least(p)
    chunk = _CHUNK * torch.get_num_threads()
    wide, high = min(max(blocks, 1), chunk), max(1, chunk // max(blocks, 1))  # of a chunk: blocks in a row, and rows
    for row, block in itertools.product(range(0, rows, high), range(0, blocks, wide)):
        here = kept[row : row + high, block : block + wide]
        words = _words(seed, (row, row + here.shape[0]), (block, block + here.shape[1]), device)
        for number, word in enumerate(words):  # a word beyond 2^31 is read as a negative number, and -x - 1 taken
            torch.logical_and(word >= least, word < 2**32 - least, out=here[..., number])
    return kept.view(rows, blocks * _WORDS)[:, :columns].reshape(shape)


@functools.lru_cache(maxsize=64)
def _least(p: float) -> int:
    """Return the least integer in [0, 2^31] whose number, as `_number` makes it, is not below p in float32.

    Comparing words with it saves turning them into numbers, and is the same comparison: numbers do not fall as the
    integers grow.
    """
    below, least = -1, 2**31  # the first is below p, the second is not
    while least - below > 1:
        middle = (below + least) // 2
        reached = bool(_number(torch.tensor([middle])) >= p) if middle < 2**31 else True
        below, least = (below, middle) if reached else (middle, least)
    return least


def _extents(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of rows of a shape, its columns, and the blocks of a row."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns, -(-columns // _WORDS)


def _words(
    seed: int | Tensor, rows: tuple[int, int], blocks: tuple[int, int], device: torch.device | str
) -> tuple[Tensor, ...]:
    """Return the four words of blocks first .. last - 1 of rows first .. last - 1, each (rows, blocks) int64."""
    row = torch.arange(*rows, device=device)[:, None]
    block = torch.arange(*blocks, device=device)[None, :]
    counter = (block, torch.zeros_like(block), row & _MASK, row >> 32)
    return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))


def _number(word: Tensor) -> Tensor:
    """Return a word as a float32 in [0, 1), as Triton does: read as int32, where x < 0 becomes -x - 1."""
    signed = (word << 32) >> 32
    return (signed ^ (signed >> 63)).to(torch.float32) * _TO_UNIFORM
