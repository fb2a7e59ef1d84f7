"""Spans: as long as they were drawn, never across a bound, uncovered in the order of their keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minillm.data.batch import Batch
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.masked_lm import MaskedLM
from minillm.objectives.masking import LONGEST, draw_lengths, neighbours, span_starts, word_starts

V, PAD, CLS, SEP, MASK = 50, 0, 1, 2, 3
CONTROL = [PAD, CLS, SEP, MASK]
SHARES = [0.2 * 0.8 ** (n - 1) / (1 - 0.8**10) for n in range(1, 11)]  # of lengths 1 .. 10


def spans_of_tokens(**choices: Any) -> MaskedLM:
    settings: dict[str, Any] = {"name": "masked_lm", "masking": "span"} | choices
    return MaskedLM(ObjectiveConfig(**settings), vocab_size=V, mask_token=MASK, control_tokens=CONTROL)


def runs(row: Tensor) -> list[int]:
    """Lengths of the runs of true values in a row."""
    where = row.nonzero()[:, 0]
    breaks = (where.diff() > 1).nonzero()[:, 0] + 1
    return [len(part) for part in torch.tensor_split(where, breaks.tolist())]


def uncovered_one_by_one(
    keys: list[float], words: list[int], joined: list[bool], lengths: list[int]
) -> list[int | None]:
    """The definition, word by word: take spans by their keys, each uncovers what no earlier one did."""
    T = len(keys)
    begins = sorted(set(words))
    source: list[int | None] = [None] * T
    for begin in sorted(begins, key=lambda column: keys[column]):
        covered: list[int] = []
        for t in range(begin, T):
            if t > begin and not joined[t - 1]:
                break
            if words[t] not in covered:
                covered.append(words[t])
            if len(covered) > lengths[begins.index(begin)]:
                break
            if source[t] is None:
                source[t] = begin
    return source


@pytest.mark.parametrize("T", [1, 2, 9, 10, 11, 60])
@pytest.mark.parametrize("words_known", [False, True], ids=["tokens", "words"])
def test_spans_are_uncovered_by_their_keys(T: int, words_known: bool) -> None:
    generator = torch.Generator().manual_seed(T)
    keys = torch.rand(20, T, generator=generator, dtype=torch.float64)
    joined = torch.rand(20, T - 1, generator=generator) < 0.9
    inside = torch.rand(20, T - 1, generator=generator) < 0.4
    words = word_starts(joined & inside if words_known else torch.zeros_like(joined))
    lengths = draw_lengths(keys.shape, generator)
    found = span_starts(keys, words, joined, lengths)
    for row in range(20):
        parts = (part[row].tolist() for part in (keys, words, joined, lengths))
        assert found[row].tolist() == uncovered_one_by_one(*parts)


def test_lengths_are_geometric_and_clipped() -> None:
    lengths = draw_lengths(torch.Size([200, 1000]), torch.Generator().manual_seed(3)).flatten()
    n = len(lengths)
    for length, share in enumerate(SHARES, start=1):
        seen = (lengths == length).sum().item()
        assert abs(seen - n * share) < 5 * math.sqrt(n * share * (1 - share))  # five standard deviations
    assert lengths.min() == 1 and lengths.max() == LONGEST == 10
    assert abs(lengths.double().mean() - 3.797) < 0.03  # the paper's 3.8


def test_runs_of_hidden_tokens_have_the_lengths_that_renewal_theory_gives() -> None:
    """Spans on a row where they hardly ever meet, until 10 tokens are hidden; the last one is cut.

    begin(m) = P(a span begins when m are hidden) = sum over l of P(l) begin(m - l);  E(spans seen with length l) =
    sum over m of begin(m) (P(l) if m + l < 10, P(length >= l) if m + l = 10, else 0)
    """
    B, T, n = 300, 20_000, 10
    objective = spans_of_tokens(rate=n / T)
    targets = objective.prepare(Batch(tokens=torch.full((B, T), 7), seed=4)).targets
    assert targets is not None
    begin = [1.0]
    for m in range(1, n):
        begin.append(sum(SHARES[length - 1] * begin[m - length] for length in range(1, m + 1)))
    seen = [length for row in targets != -100 for length in runs(row)]
    assert sum(seen) == B * n
    for length in range(1, n + 1):
        expected = B * sum(
            begin[m] * (SHARES[length - 1] if m + length < n else sum(SHARES[length - 1 :]) * (m + length == n))
            for m in range(n)
        )
        assert abs(seen.count(length) - expected) < 5 * math.sqrt(expected)  # at most one of a length in most rows


def test_a_span_stays_in_its_document_and_between_control_symbols() -> None:
    """One target a row: the whole document around it is covered at most, whatever the span's length."""
    T = 40
    tokens = torch.full((400, T), 7)
    tokens[:, ::8] = SEP
    segments = torch.arange(T).expand(400, T) // 5
    joined = neighbours(tokens != SEP, segments)
    assert joined.sum() == 400 * sum(t % 5 != 4 and t % 8 != 7 and t % 8 != 0 for t in range(T - 1))
    starts = span_starts(
        torch.rand(400, T, generator=torch.Generator().manual_seed(0)),
        torch.arange(T).expand(400, T),
        joined,
        torch.full((400, T), LONGEST),
    )
    for t in range(T):
        for begin in starts[:, t].unique().tolist():
            assert all(joined[0, begin:t]), f"a span from {begin} reached {t}"
    assert (starts[:, 3] == 1).any() and (starts[:, 4] == 1).any()  # else nothing was covered


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.4, 0.3)], ids=["80/10/10", "40/30/30"])
def test_all_tokens_of_a_span_meet_the_same_fate(shares: tuple[float, float]) -> None:
    """Three targets a row; where they stand side by side they are one span, but for two that met by chance."""
    B, T = 1000, 2000
    objective = spans_of_tokens(rate=3 / T, mask_share=shares[0], random_share=shares[1])
    prepared = objective.prepare(Batch(tokens=torch.full((B, T), 7), seed=2))
    assert prepared.targets is not None
    where = (prepared.targets != -100).nonzero()[:, 1].view(B, 3)
    seen = prepared.tokens.gather(1, where)[where[:, 2] - where[:, 0] == 2]  # (spans, 3)
    masked = (seen == MASK).sum(dim=1)
    assert ((masked > 0) & (masked < 3)).sum() <= 5
    n, kept = len(seen), (seen == 7).all(dim=1).sum().item()
    strange = ((masked == 0) & (seen != 7).any(dim=1)).sum().item()
    for observed, p in [((masked == 3).sum().item(), shares[0]), (strange, shares[1]), (kept, 1 - sum(shares))]:
        assert abs(observed - n * p) < 5 * math.sqrt(n * p * (1 - p))
    strangers = seen[(masked == 0) & (seen != 7).any(dim=1)]
    assert len(strangers.unique()) > 40  # each token of such a span is drawn by itself


def test_spans_are_of_words_where_these_are_known() -> None:
    """Even tokens begin a word, odd ones continue it: whole words save one a row, and runs of several of them."""
    classes = (np.arange(V) % 2 == 1, np.ones(V, dtype=bool))
    config = ObjectiveConfig(name="masked_lm", masking="span", rate=0.2)
    objective = MaskedLM(config, vocab_size=V, mask_token=MASK, control_tokens=CONTROL, word_classes=classes)
    tokens = torch.randint(4, V, (40, 80), generator=torch.Generator().manual_seed(5))
    long = 0
    for seed in range(5):
        targets = objective.prepare(Batch(tokens=tokens, seed=seed)).targets
        assert targets is not None
        for row, hidden in zip(tokens.tolist(), (targets != -100).tolist(), strict=True):
            words = np.cumsum([t == 0 or token % 2 == 0 for t, token in enumerate(row)])
            shares = [np.mean(np.array(hidden)[words == word]) for word in np.unique(words)]
            assert sum(0 < share < 1 for share in shares) <= 1
            long += sum(all(share == 1 for share in shares[n : n + 3]) for n in range(len(shares) - 2))
    assert long > 500
