"""Random calls of attention over all its options together, each pair of options in some call, from one seed.

The seed is 0 unless MINILLM_TEST_SEED says another; it is part of every failure's text.
"""

import itertools
import os
import random
from dataclasses import dataclass, field
from typing import Any

import torch

SEED = int(os.environ.get("MINILLM_TEST_SEED", "0"))
COUNT = 200
OPTIONS = (
    "causal",
    "left",
    "right",
    "key_start",
    "key_stop",
    "segments",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "prefix",
    "alibi_slopes",
    "bias",
    "softcap",
    "dropout_p",
    "scale",
    "groups",
    "strided",
    "cross",
)
APART = {("segments", "cu_seqlens_k"), ("segments", "cross")}  # segments need as many keys as queries
PAIRS = [pair for pair in itertools.combinations(OPTIONS, 2) if pair not in APART]


@dataclass
class Sample:
    """One call: which options it has, its tensors (bias last), upstream gradient, options, and tile sizes."""

    on: frozenset[str]
    dtype: torch.dtype
    tensors: list[torch.Tensor]
    dy: torch.Tensor
    tile: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        shapes = [tuple(x.shape) for x in self.tensors]
        return f"seed {SEED}, {self.dtype}, {shapes}, tile {self.tile}, {sorted(self.on)}: {self.options}"


def sample(number: int) -> Sample:
    """Return call `number`, which has the options of pair `number` and each other one with probability 0.3."""
    rng = random.Random(f"{SEED} {number}")
    source = torch.Generator().manual_seed(rng.randrange(2**31))
    on = chosen(rng, PAIRS[number % len(PAIRS)])
    packed = "cu_seqlens_q" in on
    B = 1 if packed else rng.choice((1, 1, 1, 2))
    H = rng.choice((2, 2, 2, 4)) if "groups" in on else rng.choice((1, 1, 1, 2))
    Hkv = rng.choice([n for n in (1, 2) if n < H]) if "groups" in on else H
    D = rng.choice((5, 16, 17, 24, 33, 64, 80))
    T = rng.choice((1, 7, 16, 19))
    S = rng.choice((1, 6, 17, 32)) if "cross" in on or "cu_seqlens_k" in on else T
    dtypes = [torch.float32, torch.float16, torch.bfloat16]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    def integers(low: int, high: int, count: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (count,), generator=source)

    dtype = rng.choice(dtypes)
    rows = {"q": (B, T, H, D), "k": (B, S, Hkv, D), "v": (B, S, Hkv, D), "dy": (B, T, H, D)}
    tensors = {name: strided(normal(*shape).to(dtype), "strided" in on, rng) for name, shape in rows.items()}
    o: dict[str, Any] = {}
    if "causal" in on:
        o["causal"] = True
    if "left" in on or "right" in on:
        left, right = (rng.choice((0, 1, 3, 20)) if side in on else None for side in ("left", "right"))
        o["window"] = (left, 0 if right and "causal" in on else right)  # causal with keys on the right is an error
    if "key_start" in on:
        o["key_start"] = integers(-1, S, B)
    if "key_stop" in on:
        o["key_stop"] = integers(0, S + 1, B)
    if "segments" in on:
        o["segments"] = integers(0, 3, B * T).view(B, T)
        if rng.random() < 0.7:  # documents in one piece each, as packing makes them
            o["segments"] = o["segments"].sort(1).values
    if packed:
        count = rng.choice((1, 3, 4))
        o["cu_seqlens_q"] = bounds(integers, T, count, rng)
        if "cu_seqlens_k" in on or S != T:
            o["cu_seqlens_k"] = bounds(integers, S, count, rng)
    if "prefix" in on:
        o["prefix"] = integers(0, S, B)
    if "alibi_slopes" in on:
        o["alibi_slopes"] = normal(H).abs().float()
    if "softcap" in on:
        o["softcap"] = rng.choice((0.7, 5.0, 50.0))
    if "dropout_p" in on:
        o["dropout_p"], o["seed"] = rng.choice((0.1, 0.5)), rng.randrange(2**62)
    if "scale" in on:
        o["scale"] = rng.choice((0.3, -0.2, 0.0))
    found = [tensors["q"], tensors["k"], tensors["v"]]
    if "bias" in on:
        bias = normal(rng.choice((1, B)), rng.choice((1, H)), T, S).to(rng.choice((dtype, torch.float32)))
        bias[torch.rand(bias.shape, generator=source) < 0.1] = -torch.inf
        found.append(strided(bias, "strided" in on, rng))
    return Sample(on, dtype, found, tensors["dy"], rng.choice(((16, 16), (16, 32), (32, 16))), o)


def chosen(rng: random.Random, pair: tuple[str, str]) -> frozenset[str]:
    """Return the options of a call that has both of `pair`."""
    on = set(pair) | {option for option in OPTIONS if rng.random() < 0.3}
    for one, other in APART:
        if {one, other} <= on:
            on.discard(one if one not in pair else other)
    if "cu_seqlens_k" in on:
        on.add("cu_seqlens_q")
    return frozenset(on)


def bounds(integers: Any, length: int, count: int, rng: random.Random) -> torch.Tensor:
    """Return 0, ..., length: where `count` sequences stand, some empty; now and then with tokens after the last."""
    inner = integers(0, length, count - 1).sort().values
    last = length if rng.random() < 0.7 else int(inner[-1]) if count > 1 else length
    return torch.cat((torch.tensor([0]), inner, torch.tensor([last]))).to(rng.choice((torch.int32, torch.int64)))


def strided(x: torch.Tensor, wanted: bool, rng: random.Random) -> torch.Tensor:
    """Return the same numbers with another layout: gaps in the last axis, or another order of the axes."""
    if not wanted:
        return x
    if rng.random() < 0.5:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x.transpose(1, 2).contiguous().transpose(1, 2)
