"""The loss of both language-model objectives: what enters it, and what is waited for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from minillm_kernels.cross_entropy import targets as checks
from waiting import Waits

from minillm.data.batch import IGNORED, Batch
from minillm.model.config import ModelConfig
from minillm.model.transformer import Encoder, build_model
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.protocol import prediction_loss

B, T, C, V = 3, 7, 16, 29
EVERY = torch.arange(B * T).view(B, T)
TARGETS = [
    pytest.param(EVERY, id="every"),
    pytest.param(EVERY.masked_fill(EVERY % 3 == 1, IGNORED), id="some"),
    pytest.param(torch.full((B, T), IGNORED), id="none"),
]


def make() -> Encoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": V, "context": T, "num_layers": 1, "width": C, "num_heads": 2}
    model = build_model(ModelConfig(**shape, kind="encoder", head="transform", head_bias=True))
    assert isinstance(model, Encoder)
    return model


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_targets_that_were_counted_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, known: bool, targets: torch.Tensor
) -> None:
    """Neither forward nor backward: the host is free to submit what comes next."""
    monkeypatch.setattr(checks, "looks_at", lambda kind: False)  # as on a GPU
    batch = Batch(tokens=torch.zeros(B, T, dtype=torch.int64), targets=targets)
    batch = batch.to("cpu") if known else batch
    hidden = torch.randn(B, T, C, requires_grad=True)
    with Waits() as waits:
        prediction_loss(make(), hidden, batch, ObjectiveConfig()).total.backward()
    assert waits.found == ([] if known else ["_local_scalar_dense"])


@pytest.mark.parametrize("targets", TARGETS)
def test_only_places_with_a_target_get_a_gradient(targets: torch.Tensor) -> None:
    """And whoever counted, it is the same to the bit."""
    batch, found = Batch(tokens=torch.zeros(B, T, dtype=torch.int64), targets=targets), []
    for given in (batch, batch.to("cpu")):
        hidden = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = prediction_loss(make(), hidden, given, ObjectiveConfig())
        assert loss.count == (targets != IGNORED).sum()
        loss.total.backward()
        found.append((loss.total, hidden.grad))
    (total, gradient), (again, same) = found
    assert total.item() == again.item() and gradient is not None and torch.equal(gradient, same)
    assert torch.equal((gradient != 0).any(-1), targets != IGNORED)


def test_a_wrong_number_does_not_pass_in_silence() -> None:
    """Too few are reported as that few, which the trainer compares with what it counted; too many are an error."""
    batch = Batch(tokens=torch.zeros(B, T, dtype=torch.int64), targets=EVERY, num_targets=4)
    hidden = torch.randn(B, T, C)
    assert prediction_loss(make(), hidden, batch, ObjectiveConfig()).count == 4
    with pytest.raises(ValueError, match="num_targets must be from 0 to 21"):
        prediction_loss(make(), hidden, dataclasses.replace(batch, num_targets=22), ObjectiveConfig())
