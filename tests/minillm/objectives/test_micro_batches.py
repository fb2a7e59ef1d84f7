"""k micro-batches give the gradient of one batch: the mean over all targets, not a mean of means."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from minillm_kernels.cross_entropy import targets as checks
from torch import Tensor
from torch.nn import functional as F
from waiting import Waits

from minillm.data.batch import Batch
from minillm.model.config import Kind, ModelConfig
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.masked_lm import MaskedLM
from minillm.training.gradient import add_gradient, targets_in

V, T = 29, 11
LENGTHS = torch.tensor([11, 3, 7, 1, 11, 5])  # so each row has another number of targets


def make(kind: Kind) -> Encoder | Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": V, "context": T, "num_layers": 2, "width": 16, "num_heads": 2}
    model = build_model(ModelConfig(**shape, kind=kind, init_std=0.3)).double()
    model.compute_in(torch.float64)
    return model.train()


def causal(**choices: Any) -> tuple[CausalLM, Encoder | Decoder, Batch]:
    tokens = torch.randint(V, (6, T), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, dims=1).masked_fill(torch.arange(T) >= LENGTHS[:, None], -100)
    batch = Batch(tokens=tokens, targets=targets, lengths=LENGTHS, seed=5)
    return CausalLM(ObjectiveConfig(**choices)), make("decoder"), batch


def masked(**choices: Any) -> tuple[MaskedLM, Encoder | Decoder, Batch]:
    tokens = torch.randint(4, V, (6, T), generator=torch.Generator().manual_seed(2))
    classes = (np.arange(V) % 3 == 0, np.ones(V, dtype=bool))
    settings: dict[str, Any] = {"name": "masked_lm", "rate": 0.3} | choices
    config = ObjectiveConfig(**settings)
    objective = MaskedLM(config, vocab_size=V, mask_token=3, control_tokens=range(4), word_classes=classes)
    return objective, make("encoder"), Batch(tokens=tokens, lengths=LENGTHS, seed=5)


CASES = [
    pytest.param(causal, {}, id="causal"),
    pytest.param(causal, {"z_loss": 0.01, "label_smoothing": 0.1}, id="causal-z-smoothing"),
    pytest.param(masked, {}, id="masked-token"),
    pytest.param(masked, {"masking": "whole_word", "z_loss": 0.01}, id="masked-whole-word"),
    pytest.param(masked, {"masking": "span"}, id="masked-span"),
]


def gradient(model: torch.nn.Module) -> Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("case, choices", CASES)
def test_any_number_of_micro_batches_gives_the_gradient_of_the_mean(case: Any, choices: dict[str, Any]) -> None:
    objective, model, batch = case(**choices)
    batch = objective.prepare(batch)
    logits, targets = model.logits(batch.tokens, lengths=batch.lengths), batch.targets
    kept = targets != -100
    truth = F.cross_entropy(logits[kept], targets[kept], label_smoothing=choices.get("label_smoothing", 0.0))
    truth = truth + choices.get("z_loss", 0.0) * logits[kept].logsumexp(-1).square().mean()
    truth.backward()
    expected = gradient(model)
    count = targets_in(batch)
    assert count == kept.sum()
    for k in (1, 2, 3, 6):
        model.zero_grad()
        loss, excess = add_gradient(model, objective, batch, count=count, micro_batches=k, device=torch.device("cpu"))
        assert (gradient(model) - expected).abs().max() < 1e-12 * expected.abs().max(), f"{k} micro-batches"
        assert abs(loss - truth) < 1e-12 * truth
        assert excess == 0


@pytest.mark.parametrize("case, choices", CASES)
def test_nothing_is_waited_for_but_the_cpus_own_count(
    monkeypatch: pytest.MonkeyPatch, case: Any, choices: dict[str, Any]
) -> None:
    """Of each micro-batch's targets, while they are on the CPU; from there on a GPU would be waited for."""
    monkeypatch.setattr(checks, "looks_at", lambda kind: False)  # as on a GPU
    monkeypatch.setattr("minillm_kernels.checks.can_look", lambda tensor: False)
    objective, model, batch = case(**choices)
    batch = objective.prepare(batch)
    with Waits() as waits:
        add_gradient(model, objective, batch, count=5, micro_batches=3, device=torch.device("cpu"))
    assert waits.found == ["_local_scalar_dense"] * 3


@pytest.mark.parametrize("case, choices", CASES)
def test_rows_without_targets_neither_count_nor_hurt(case: Any, choices: dict[str, Any]) -> None:
    """A micro-batch may have none at all: a row of padding."""
    objective, model, batch = case(**choices)
    empty = dataclasses.replace(batch, lengths=LENGTHS.clone().index_fill_(0, torch.tensor([3, 5]), 0))
    if batch.targets is not None:
        empty = dataclasses.replace(empty, targets=batch.targets.index_fill(0, torch.tensor([3, 5]), -100))
    empty = objective.prepare(empty)
    gradients = []
    for k in (1, 6):
        model.zero_grad()
        add_gradient(model, objective, empty, count=targets_in(empty), micro_batches=k, device=torch.device("cpu"))
        gradients.append(gradient(model))
    assert gradients[0].isfinite().all()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12 * gradients[0].abs().max()
