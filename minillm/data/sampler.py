r"""The order in which windows are visited: a pure function of a seed and an integer, without replacement.

    sample g of a run  ->  epoch g // n, place i = g % n  ->  window permutation_epoch(i),     n windows

The permutation is a Feistel network over the numbers below a power of four, walked until it comes out below n. It needs
no table, so any place of any epoch is known at once: to resume at sample g means to begin at sample g.

    round:  (left, right) -> (right, left xor hash(right, round key))        a bijection whatever the hash is

Source: Black and Rogaway (2002), "Ciphers with Arbitrary Finite Domains", the cycle-walking cipher.

Read next: `loader.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


def mix(*numbers: int) -> int:
    """Return a 63-bit number that depends on all of the numbers, as if drawn at random (SplitMix64, Steele 2014).

    >>> mix(1, 2) != mix(2, 1)
    True
    """
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for number in numbers:
            state = _splitmix(state ^ np.uint64(number % 2**64))
    return int(state >> np.uint64(1))


def permuted(places: NDArray[np.int64], count: int, key: int) -> NDArray[np.int64]:
    """Return where a permutation of 0 .. count-1 sends each place.

    Args:
        places: any shape, each in [0, count).
        count: n, at least 1.
        key: another key, another permutation.
    Returns:
        int64 in the shape of `places`.

    Cost: a few dozen integer operations a place.

    >>> sorted(permuted(np.arange(5), 5, key=7).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))  # bits of one half
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(mix(key, number)) for number in range(ROUNDS)]
    out = places.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    with np.errstate(over="ignore"):
        while outside.any():
            left, right = out[outside] >> half, out[outside] & low
            for round_key in keys:
                left, right = right, left ^ (_splitmix(right ^ round_key) & low)
            out[outside] = (left << half) | right
            outside = out >= np.uint64(count)
    return out.astype(np.int64)


def named(numbers: NDArray[np.int64], most: int = 8) -> str:
    """Return numbers as a message names them, the first few and how many there are.

    >>> named(np.arange(3)), named(np.arange(1000, 2000), most=2)
    ('0, 1, 2', '1000, 1001, ... (1000 in all)')
    """
    rest = f", ... ({len(numbers)} in all)" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most].tolist())) + rest


def _splitmix(state):
    """Return the next output of SplitMix64 for a uint64 or an array of them; wraps around."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
