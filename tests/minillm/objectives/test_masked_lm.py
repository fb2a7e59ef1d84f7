"""What masking hides: how many, which, as what; and that nothing but the batch's seed decides it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import Batch
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.masked_lm import MaskedLM

V, PAD, CLS, SEP, MASK = 50, 0, 1, 2, 3
CONTROL = [PAD, CLS, SEP, MASK]
# Made-up word classes: even tokens begin a word, odd ones continue it; those that 5 divides end it.
BEGINS, ENDS = np.arange(V) % 2 == 1, np.arange(V) % 5 != 0


def masker(**choices: Any) -> MaskedLM:
    settings: dict[str, Any] = {"name": "masked_lm"} | choices
    config = ObjectiveConfig(**settings)
    return MaskedLM(config, vocab_size=V, mask_token=MASK, control_tokens=CONTROL, word_classes=(BEGINS, ENDS))


def noise(B: int, T: int, **fields: Any) -> Batch:
    """Rows of ordinary tokens between cls and sep."""
    tokens = torch.randint(4, V, (B, T), generator=torch.Generator().manual_seed(B * 1000 + T))
    if T > 1:
        tokens[:, 0], tokens[:, -1] = CLS, SEP
    given: dict[str, Any] = {"tokens": tokens, "seed": 1} | fields
    return Batch(**given)


def words_of(tokens: list[int], segments: list[int]) -> list[list[int]]:
    """Columns of each word, by the rule of `Tokenizer.word_classes`."""
    words: list[list[int]] = []
    for t, token in enumerate(tokens):
        joined = (
            t > 0
            and ENDS[tokens[t - 1]]
            and BEGINS[token]
            and segments[t] == segments[t - 1]
            and token not in CONTROL
            and tokens[t - 1] not in CONTROL
        )
        if joined:
            words[-1].append(t)
        else:
            words.append([t])
    return words


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.05, 0.125, 1.0, 1e-6])
def test_the_number_of_targets_is_exact(masking: str, rate: float) -> None:
    objective = masker(masking=masking, rate=rate)
    for T in [1, 2, 3, 4, 12, 13, 22, 102, 330]:
        batch = noise(3, T)
        prepared = objective.prepare(batch)
        assert prepared.targets is not None
        for tokens, targets in zip(batch.tokens.tolist(), prepared.targets.tolist(), strict=True):
            maskable = sum(token not in CONTROL for token in tokens)
            wanted = max(1, round(rate * maskable)) if maskable else 0
            assert sum(target != -100 for target in targets) == wanted


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.2, 0.35])
def test_the_number_is_rounded_as_python_does_at_every_length(rate: float) -> None:
    """One row for each number of maskable tokens: halves must not depend on float32."""
    T = 700
    tokens = torch.full((T, T), 7).tril()  # row n holds n + 1 tokens, then padding
    prepared = masker(rate=rate).prepare(Batch(tokens=tokens, seed=0))
    assert prepared.targets is not None
    assert (prepared.targets != -100).sum(1).tolist() == [max(1, round(rate * n)) for n in range(1, T + 1)]


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_control_symbols_and_padding_are_left_alone(masking: str) -> None:
    # Padding of ordinary tokens: only starts and lengths tell that it is padding.
    starts, lengths = torch.tensor([0, 5, 19, 3]), torch.tensor([20, 10, 1, 0])
    batch = noise(4, 20, starts=starts, lengths=lengths)
    columns = torch.arange(20)
    real = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
    for seed in range(50):
        prepared = masker(masking=masking, rate=0.9).prepare(dataclasses.replace(batch, seed=seed))
        assert prepared.targets is not None
        hidden = prepared.targets != -100
        assert not (hidden & ~real).any()
        assert not (hidden & torch.isin(batch.tokens, torch.tensor(CONTROL))).any()
        assert torch.equal(prepared.tokens[~hidden], batch.tokens[~hidden])
        assert torch.equal(prepared.targets[hidden], batch.tokens[hidden])
        assert hidden[2:].sum() == 0  # a lone sep, and nothing at all


@pytest.mark.parametrize(
    "shares",
    [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.25)],
    ids=["80/10/10", "all masked", "all random", "all kept", "50/25/25"],
)
@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_shares_of_masked_random_and_kept(masking: str, shares: tuple[float, float]) -> None:
    batch = noise(64, 200)
    prepared = masker(masking=masking, rate=0.4, mask_share=shares[0], random_share=shares[1]).prepare(batch)
    assert prepared.targets is not None
    hidden = prepared.targets != -100
    seen, truth = prepared.tokens[hidden], batch.tokens[hidden]
    n, ordinary = len(seen), V - len(CONTROL)
    masked = shares[0]
    strange = shares[1] * (1 - 1 / ordinary)  # a random token is the true one now and then
    kept = 1 - masked - strange
    for observed, p in [(seen == MASK, masked), ((seen != MASK) & (seen != truth), strange), (seen == truth, kept)]:
        bound = 5 * math.sqrt(n * p * (1 - p))  # five standard deviations of the binomial
        assert abs(observed.sum().item() - n * p) <= bound + 1e-6
    strangers = seen[(seen != MASK) & (seen != truth)]
    assert not torch.isin(strangers, torch.tensor(CONTROL)).any()
    if shares[1] > 0.05:
        assert len(strangers.unique()) == ordinary  # all ordinary tokens are drawn


def test_every_place_is_hidden_equally_often() -> None:
    tokens = torch.randint(4, V, (4000, 10), generator=torch.Generator().manual_seed(0))
    prepared = masker(rate=0.3).prepare(Batch(tokens=tokens, seed=9))
    assert prepared.targets is not None
    share = (prepared.targets != -100).double().mean(0)
    assert (share - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_words_are_hidden_whole_save_one_a_row(packed: bool) -> None:
    B, T = 40, 60
    segments = torch.arange(T).expand(B, T) // 7 if packed else None
    batch = noise(B, T, segments=segments)
    cut, long = 0, 0
    for seed in range(5):
        prepared = masker(masking="whole_word", rate=0.3).prepare(dataclasses.replace(batch, seed=seed))
        assert prepared.targets is not None
        for b in range(B):
            hidden = (prepared.targets[b] != -100).tolist()
            words = words_of(batch.tokens[b].tolist(), [0] * T if segments is None else segments[b].tolist())
            partly = [word for word in words if 0 < sum(hidden[t] for t in word) < len(word)]
            assert len(partly) <= 1
            for word in partly:  # the one that is cut loses its end
                assert [hidden[t] for t in word] == sorted((hidden[t] for t in word), reverse=True)
            cut += len(partly)
            long += sum(len(word) > 1 and all(hidden[t] for t in word) for word in words)
    assert cut > 0 and long > 100  # else the claim is empty


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_neighbouring_words_are_drawn_apart(packed: bool) -> None:
    """Some seed hides a word and not the one before it; within one word the left part is hidden first."""
    T = 30
    segments = torch.arange(T)[None] // 7 if packed else None
    batch = noise(1, T, segments=segments)
    words = words_of(batch.tokens[0].tolist(), [0] * T if segments is None else segments[0].tolist())
    bounds = [word[0] for word in words[2:-1]]  # the first word is cls, the last one sep
    met: set[int] = set()
    for seed in range(200):
        targets = masker(masking="whole_word", rate=0.3).prepare(dataclasses.replace(batch, seed=seed)).targets
        assert targets is not None
        hidden = (targets[0] != -100).tolist()
        met |= {t for t in bounds if hidden[t] and not hidden[t - 1]}
    assert met == set(bounds) and len(bounds) > 8


def test_token_masking_does_cut_words() -> None:
    batch = noise(40, 60)
    targets = masker(rate=0.3).prepare(batch).targets
    assert targets is not None
    partly = 0
    for tokens, row in zip(batch.tokens.tolist(), targets.tolist(), strict=True):
        partly += sum(0 < sum(row[t] != -100 for t in word) < len(word) for word in words_of(tokens, [0] * 60))
    assert partly > 40


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_the_seed_of_the_batch_alone_decides(masking: str) -> None:
    objective, batch = masker(masking=masking), noise(4, 40, seed=123)
    original = batch.tokens.clone()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = objective.prepare(batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    second = masker(masking=masking).prepare(batch)
    other = objective.prepare(dataclasses.replace(batch, seed=124))
    assert first.targets is not None and second.targets is not None and other.targets is not None
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.targets, second.targets)
    assert not torch.equal(first.targets, other.targets)
    assert torch.equal(batch.tokens, original)  # the loader's batch stays as it is
    assert first.seed == 123


@pytest.mark.parametrize("seed", [0, 2**63 - 1, -(2**63)])
def test_any_int64_is_a_seed(seed: int) -> None:
    assert masker().prepare(noise(1, 5, seed=seed)).targets is not None


def test_mistakes_say_what_to_do() -> None:
    config = ObjectiveConfig(name="masked_lm", masking="whole_word")
    with pytest.raises(ValueError, match="needs word_classes; take those of the tokenizer"):
        MaskedLM(config, vocab_size=V, mask_token=MASK, control_tokens=CONTROL)
    with pytest.raises(ValueError, match="all tokens are control symbols"):
        MaskedLM(ObjectiveConfig(), vocab_size=4, mask_token=MASK, control_tokens=CONTROL)
    with pytest.raises(ValueError, match="draws from batch.seed, and this batch has none"):
        masker().prepare(noise(1, 5, seed=None))


@pytest.mark.parametrize("choices", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}], ids=str)
def test_the_loss_is_cross_entropy_at_the_hidden_places(choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": V, "context": 20, "num_layers": 1, "width": 16, "num_heads": 2}
    config = ModelConfig(**shape, kind="encoder", head="transform", head_bias=True, logit_softcap=3.0, init_std=0.5)
    model = build_model(config).double()
    model.compute_in(torch.float64)
    objective = masker(rate=0.3, **choices)
    batch = objective.prepare(noise(3, 20, lengths=torch.tensor([20, 11, 2])))
    loss = objective.step(model, batch)
    assert batch.targets is not None
    logits = model.logits(batch.tokens, lengths=batch.lengths).flatten(0, 1)
    targets = batch.targets.flatten()
    smoothing = choices.get("label_smoothing", 0.0)
    truth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    truth = truth + choices.get("z_loss", 0.0) * logits[targets != -100].logsumexp(-1).square().sum()
    assert abs(loss.total - truth) < 1e-12 * truth
    assert loss.count == (targets != -100).sum() == 5 + 3 + 1  # of 18 (cls, sep), of 10, of 1 maskable tokens


def test_hidden_tokens_are_counted_anew_in_a_batch_that_had_other_targets() -> None:
    """Such as one of next tokens, counted on its way to a device."""
    before = noise(3, 20, targets=torch.zeros(3, 20, dtype=torch.int64)).to("cpu")
    assert before.num_targets == 3 * 20
    moved = masker(rate=0.15).prepare(before).to("cpu")
    assert moved.targets is not None
    assert moved.num_targets == (moved.targets != -100).sum() == 3 * 3  # of 18 tokens between cls and sep


def test_only_targets_enter_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        kind="encoder", vocab_size=V, context=20, num_layers=1, width=16, num_heads=2, head="transform"
    )
    model = build_model(config)
    entered: list[Tensor] = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: entered.append(hidden) or head(hidden))
    objective = masker(rate=0.15)
    loss = objective.step(model, objective.prepare(noise(3, 20)))
    assert [x.shape for x in entered] == [(int(loss.count), 16)]
