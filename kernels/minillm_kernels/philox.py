r"""Philox 4x32-10: random numbers as a pure function of a seed and an index, bit-equal to Triton's `tl.rand`.

Every dropout in this package asks `keep` whether an element stays. The answer depends on the seed and on the element's
linear index alone, so it is the same on every backend, in a recomputed forward pass and after a resumed run.

One block of four 32-bit words (c0, c1, c2, c3) is mixed in ten rounds under the key (k0, k1). With M = 2^32 - 1,
hi and lo the upper and lower words of a 64-bit product, and the constants A, B of the paper:

    (c0, c1, c2, c3) <- (hi(B * c2) ^ c1 ^ k0,  lo(B * c2),  hi(A * c0) ^ c3 ^ k1,  lo(A * c0))      (1)
    (k0, k1)         <- (k0 + KEY_A, k1 + KEY_B) mod 2^32                                            (2)

Here the counter is (index mod 2^32, index / 2^32, 0, 0), the key (seed mod 2^32, seed / 2^32), and the first word is
used. PyTorch has no full set of unsigned ops, so the words live in int64. A product that passes 2^63 wraps, which
leaves all its 64 bits right; a word is masked to 32 bits only before it is multiplied again.

Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3"; the conversion to float32 is Triton's.

Read next: `dropout/__init__.py`.
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
_CHUNK = (
    1 << 15
)  # elements a thread at a time: the fastest on a CPU with 512 KiB of cache a core, where it halves the time


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


def uniform(seed: int | Tensor, offsets: Tensor) -> Tensor:
    """Return one number in [0, 1) for each offset, bit-equal to Triton's `tl.rand(seed, offsets)`.

    Args:
        seed: int or 0-dim int64 tensor; all 64 bits count.
        offsets: int64, any shape; values past 2^32 are fine.
    Returns:
        float32 in the shape of `offsets`.

    Cost: about 100 integer operations an element.

    >>> uniform(7, torch.arange(3))
    tensor([0.0908, 0.8139, 0.0122])
    """
    zeros = torch.zeros_like(offsets)
    counter = (offsets & _MASK, (offsets >> 32) & _MASK, zeros, zeros)
    word = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))[0]
    signed = (word << 32) >> 32  # the same 32 bits, read as int32
    return (signed ^ (signed >> 63)).to(torch.float32) * _TO_UNIFORM  # x < 0 becomes -x - 1, as in Triton


def keep(shape: tuple[int, ...], p: float, seed: int | Tensor, device: torch.device | str) -> Tensor:
    """Return which elements of a tensor of `shape` survive dropout: those with uniform(seed, linear index) >= p.

    Args:
        shape: any; an element's index is its place in a contiguous tensor of that shape.
        p: probability of being dropped, in [0, 1).
        seed: int or 0-dim int64 tensor.
    Returns:
        bool in `shape`.

    Cost: on a CPU it runs a chunk at a time, so that the words stay in the cache.

    >>> keep((2, 3), 0.4, 7, "cpu")
    tensor([[False,  True, False],
            [ True,  True,  True]])
    """
    count = math.prod(shape)
    if torch.device(device).type != "cpu" or torch.compiler.is_compiling():
        return (uniform(seed, torch.arange(count, device=device)) >= p).view(shape)
    kept = torch.empty(count, dtype=torch.bool, device=device)
    chunk = _CHUNK * torch.get_num_threads()
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        torch.ge(uniform(seed, torch.arange(start, stop, device=device)), p, out=kept[start:stop])
    return kept.view(shape)
