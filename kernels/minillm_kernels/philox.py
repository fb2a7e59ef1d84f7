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
        counter: four int64 tensors of one shape with values in [0, 2^32).
        key: two words in [0, 2^32), ints or 0-dim int64 tensors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product_a, product_b = c0 * _ROUND_A, c2 * _ROUND_B
        # (1); `>>` copies the sign bit into the upper half and c1, c3 keep theirs: the mask at the end clears both
        c0 = (product_b >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (product_a >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
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
    tensor([[0.0908, 0.8709, 0.9062],
            [0.1303, 0.1921, 0.9393]])
    """
    rows, columns, blocks = _extents(shape)
    numbers = torch.stack([_number(word) for word in _words(seed, 0, rows * blocks, blocks, device)], -1)
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
    tensor([[False,  True,  True],
            [False, False,  True]])
    """
    if torch.device(device).type != "cpu" or torch.compiler.is_compiling():
        return uniform(seed, shape, device) >= p
    rows, columns, blocks = _extents(shape)
    kept = torch.empty(rows * blocks, _WORDS, dtype=torch.bool)
    chunk = _CHUNK * torch.get_num_threads()
    for start in range(0, rows * blocks, chunk):
        stop = min(start + chunk, rows * blocks)
        for number, word in enumerate(_words(seed, start, stop, blocks, device)):
            torch.ge(_number(word), p, out=kept[start:stop, number])
    return kept.view(rows, blocks * _WORDS)[:, :columns].reshape(shape)


def _extents(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of rows of a shape, its columns, and the blocks of a row."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns, -(-columns // _WORDS)


def _words(seed: int | Tensor, start: int, stop: int, blocks: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """Return the four words of blocks start .. stop - 1, counted row by row, each (stop - start,) int64."""
    place = torch.arange(start, stop, device=device)
    row = place.div(max(blocks, 1), rounding_mode="floor")
    counter = (place - row * blocks, torch.zeros_like(place), row & _MASK, row >> 32)
    return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))


def _number(word: Tensor) -> Tensor:
    """Return a word as a float32 in [0, 1), as Triton does: read as int32, where x < 0 becomes -x - 1."""
    signed = (word << 32) >> 32
    return (signed ^ (signed >> 63)).to(torch.float32) * _TO_UNIFORM
