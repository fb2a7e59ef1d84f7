"""From logits to the next token: each filter is one pure function of the logits, then one draw.

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

in this order, which is that of the common libraries. A filter puts -inf where a token may not be drawn.

Read next: `generate.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import setting
from minillm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. Defaults: mild temperature, no filter."""

    temperature: float = setting(0.8, "logits are divided by it before softmax; 0: always the likeliest token")
    top_k: int | None = setting(None, "draw from the k likeliest tokens only; none: from all")
    top_p: float | None = setting(
        None, "draw from the smallest set of likeliest tokens that holds this probability, in (0, 1]; none: from all"
    )
    min_p: float | None = setting(
        None, "draw only tokens at least this share as likely as the likeliest, in (0, 1]; none: from all"
    )
    repetition_penalty: float = setting(
        1.0, "above 1: tokens that prompt and text already hold become less likely; 1: off"
    )

    def __post_init__(self) -> None:
        if self.temperature != 0.0 and not 1e-3 <= self.temperature <= 1e3:  # beyond, float32 logits would overflow
            raise InputError(
                f"temperature must be 0 or in [0.001, 1000], got {self.temperature}; 0 takes the likeliest token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}; leave it out to draw from all tokens")
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0.0 < value <= 1.0:
                raise InputError(f"{name} must be in (0, 1], got {value}; leave it out to draw from all tokens")
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise InputError(
                f"repetition_penalty must be in [0.01, 100], got {self.repetition_penalty}; 1 switches it off"
            )


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely.

        l'[v] = l[v] / penalty if l[v] > 0 else l[v] * penalty,    for seen v

    Args:
        logits: (B, V), floating.
        seen: (B, V) bool, true where the row already holds the token.
        penalty: above 1 to discourage, below 1 to encourage, 1 for nothing.
    Returns:
        (B, V) in the dtype of `logits`.

    Source: Keskar et al. (2019), CTRL, arXiv:1909.05858, section 4.1; for negative logits, where dividing would
    encourage, with the product that all libraries use.

    >>> penalise_repetition(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]]), 2.0)
    tensor([[ 1., -4.,  2.]])
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k highest logits of each row, and those equal to the k-th, so that no tie depends on a sort.

    Args:
        logits: (..., V), floating.
        k: at least 1; more than V keeps all.
    Returns:
        (..., V), -inf where a token is dropped.

    >>> top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
    tensor([-inf, 3., 2.])
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < kth, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of the likeliest tokens whose probability is at least p (nucleus sampling).

    With tokens in falling order of probability, the i-th stays when q_1 + ... + q_(i-1) < p: so the first always does.

    Args:
        logits: (..., V), floating.
        p: in (0, 1].
    Returns:
        (..., V), -inf where a token is dropped; among equal tokens the lower id stays.

    Source: Holtzman et al. (2020), arXiv:1904.09751.

    >>> top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6).exp()
    tensor([0.0000, 0.5000, 0.3000])
    """
    if p == 1.0:  # all of them; sums of float32 would reach 1 before the last one
        return logits
    falling, order = logits.sort(dim=-1, descending=True, stable=True)
    share = falling.softmax(dim=-1)
    before = share.cumsum(dim=-1) - share  # (..., V) probability of all likelier tokens
    before[..., 0] = -1.0  # the first stays, also where p is too small for the dtype and counts as 0
    dropped = torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(dropped, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least p times as likely as the likeliest: q_v >= p * max(q), that is l_v >= max(l) + log p.

    Args:
        logits: (..., V), floating.
        p: in (0, 1].
    Returns:
        (..., V), -inf where a token is dropped.

    Source: Nguyen et al. (2024), arXiv:2407.01082.

    >>> min_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.5).exp()
    tensor([0.5000, 0.3000, 0.0000])
    """
    floor = logits.max(dim=-1, keepdim=True).values + math.log(p)
    return logits.masked_fill(logits < floor, -torch.inf)


def filtered(logits: Tensor, seen: Tensor, config: SamplingConfig) -> Tensor:
    """Return logits whose softmax is the distribution to draw from: all of `config` applied, in the file's order.

    Args:
        logits: (B, V), floating.
        seen: (B, V) bool, for the repetition penalty.
        config: a temperature of 0 leaves out temperature and filters: `choose` takes the highest.
    """
    if config.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0.0:
        return logits
    logits = logits / config.temperature
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row from softmax(logits): the first v with q_0 + ... + q_v > u.

    Args:
        logits: (B, V), floating; -inf for tokens that are never drawn.
        uniforms: (B,) float64 on the CPU, in [0, 1).
    Returns:
        (B,) int64 on the CPU.

    The sum is taken in float64 on the CPU: MPS has no float64, and a float32 sum over a large vocabulary is off by more
    than the probability of a rare token.

    >>> draw(torch.tensor([[0.2, 0.5, 0.3]]).log().expand(3, 3), torch.tensor([0.1, 0.69, 0.71], dtype=torch.float64))
    tensor([0, 1, 2])
    """
    sums = logits.softmax(dim=-1).cpu().double().cumsum(dim=-1)  # (B, V)
    # Below the last sum by one rounding step, or u = 1 - eps could fall past the last token that may be drawn.
    at = torch.minimum(uniforms * sums[:, -1], sums[:, -1].nextafter(torch.zeros(()).double()))
    return torch.searchsorted(sums, at[:, None], right=True)[:, 0]


def choose(logits: Tensor, seen: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token of each row: the likeliest when the temperature is 0, else one draw.

    Args:
        logits: (B, V), floating.
        seen: (B, V) bool, true where the row already holds the token.
        config: see `filtered`.
        generators: B generators on the CPU, one for each row; each gives one number, also when none is needed.
    Returns:
        (B,) int64 on the CPU.
    """
    uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])  # (B,)
    logits = filtered(logits, seen, config)
    return logits.argmax(dim=-1).cpu() if config.temperature == 0.0 else draw(logits, uniforms)


def row_generators(seed: int, prompts: Sequence[str]) -> list[torch.Generator]:
    """Return a generator for each prompt, from (seed, prompt, how often the prompt came before).

    So a prompt is continued alike alone and in any batch, and a prompt that is given twice is continued twice.
    """
    generators = []
    for i, prompt in enumerate(prompts):
        earlier = sum(prompt == other for other in prompts[:i])
        digest = hashlib.sha256(f"{seed} {earlier} {prompt}".encode(errors="surrogatepass")).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return generators
