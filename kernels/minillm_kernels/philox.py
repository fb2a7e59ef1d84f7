r"""Philox 4x32-7: random numbers as a pure function of a seed and a place in a tensor, on every backend the same.

Every dropout in this package keeps or drops an element by its number here. That depends on the seed, the element's row
and its column alone, so it is the same on every backend, in a recomputed forward pass and after a resumed run.

One block of four 32-bit words (c0, c1, c2, c3) is mixed in seven rounds under the key (k0, k1). With hi and lo the
upper and lower words of a 64-bit product, and the constants A, B, KEY_A and KEY_B of the paper:

    (c0, c1, c2, c3) <- (hi(B * c2) ^ c1 ^ k0,  lo(B * c2),  hi(A * c0) ^ c3 ^ k1,  lo(A * c0))      (1)
    (k0, k1)         <- (k0 + KEY_A, k1 + KEY_B) mod 2^32                                            (2)

Seven rounds are the fewest with which its authors found no statistical test of BigCrush to fail; ten, the usual number,
are a margin that dropout does not need.

A block's four words are eight halves of 16 bits, one for each of eight neighbours of a row. With r the row, the linear
index over all axes but the last, and c the column, an element has the number n / 2^16 in [0, 1), where n is

    half c mod 2, the lower one first, of word (c mod 8) / 2 of the block with
    counter (c / 8, 0, r mod 2^32, r / 2^32), key (seed mod 2^32, seed / 2^32)                       (3)

so a tile that begins at a column divisible by 8 needs no more blocks than it has elements / 8, however wide a row is. A
probability counts in steps of 2^-16: the share that is dropped is p rounded up to the next, 0.100006 for 0.1.

PyTorch has no full set of unsigned ops, so the words live in int64. A product that passes 2^63 wraps, which leaves all
its 64 bits right; a word is masked to 32 bits only before it is multiplied again.

Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".

Read next: `philox_tiles.py`, the same in a kernel; then `dropout/__init__.py`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 7
COLUMNS = 8  # of a row that share a block
STEPS = 2**16  # of a number in [0, 1)
_CHUNK = 1 << 15  # blocks a thread at a time: what they need stays in the cache of a core, which halves the time


def seed_on(seed: int | Tensor, device: torch.device | str) -> Tensor:
    """Return a seed as a 0-dim int64 tensor on `device`, without waiting for it; all 64 bits of an int count.

    Under torch.compile an int must be an int64: it may be symbolic, and the compiler's numbers end at 2^63.
    """
    if isinstance(seed, Tensor):
        return seed.to(device, non_blocking=True)
    if isinstance(seed, int) and not torch.compiler.is_compiling():
        seed = (seed + 2**63) % 2**64 - 2**63
    return torch.full((), seed, dtype=torch.int64, device=device)


def seed_of_dropout(p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """Return the seed on `device`, as kernels take it; None where nothing is dropped."""
    return seed_on(seed, device) if p > 0 and seed is not None else None


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, ...]:
    """Return the four words that seven rounds make of `counter` under `key`, each int64 in [0, 2^32).

    Args:
        counter: four int64 tensors, with values in [0, 2^32), that broadcast; the words have their common shape.
        key: two words in [0, 2^32), ints or 0-dim int64 tensors.

    Cost: 72 operations on tensors of the common shape; of a column of rows and a row of blocks 68, as the first
        round's products are still of one of the two alone.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
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
        float32 in `shape`.

    Cost: about 11 integer operations an element.

    >>> uniform(7, (2, 3))
    tensor([[0.4913, 0.3327, 0.1706],
            [0.0880, 0.4706, 0.3657]])
    """
    rows, columns, blocks = _extents(shape)
    halves = [
        half for word in _words(seed, (0, rows), (0, blocks), device) for half in (word & (STEPS - 1), word >> 16)
    ]
    numbers = torch.stack(halves, -1).to(torch.float32) / STEPS
    return numbers.view(rows, blocks * COLUMNS)[:, :columns].reshape(shape)


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
    tensor([[ True, False, False],
            [False,  True, False]])
    """
    if torch.device(device).type != "cpu" or torch.compiler.is_compiling():
        return uniform(seed, shape, device) >= p
    rows, columns, blocks = _extents(shape)
    kept = torch.empty(rows, blocks, COLUMNS, dtype=torch.bool)
    least = math.ceil(float(torch.tensor(p, dtype=torch.float32)) * STEPS)  # the least n that is not below p in float32
    chunk = _CHUNK * torch.get_num_threads()
    wide, high = min(max(blocks, 1), chunk), max(1, chunk // max(blocks, 1))  # of a chunk: blocks in a row, and rows
    for row, block in itertools.product(range(0, rows, high), range(0, blocks, wide)):
        here = kept[row : row + high, block : block + wide]
        words = _words(seed, (row, row + here.shape[0]), (block, block + here.shape[1]), device)
        for number, word in enumerate(words):
            torch.ge(word & (STEPS - 1), least, out=here[..., 2 * number])
            torch.ge(word, least * STEPS, out=here[..., 2 * number + 1])  # what the lower half is decides nothing
    return kept.view(rows, blocks * COLUMNS)[:, :columns].reshape(shape)


def _extents(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of rows of a shape, its columns, and the blocks of a row."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns, -(-columns // COLUMNS)


def _words(
    seed: int | Tensor, rows: tuple[int, int], blocks: tuple[int, int], device: torch.device | str
) -> tuple[Tensor, ...]:
    """Return the four words of blocks first .. last - 1 of rows first .. last - 1, each (rows, blocks) int64."""
    if torch.compiler.is_compiling():
        seed = seed_on(seed, device)  # the compiler has no words of a symbolic int
    row = torch.arange(*rows, device=device)[:, None]
    block = torch.arange(*blocks, device=device)[None, :]
    counter = (block, torch.zeros_like(block), row & _MASK, row >> 32)
    return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
