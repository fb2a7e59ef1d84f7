"""The loss of a decoder is the cross-entropy of its logits, summed over the targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import Batch
from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.config import ObjectiveConfig

V = 23


def make(**choices: Any) -> Encoder | Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": V,
        "context": 16,
        "num_layers": 1,
        "width": 16,
        "num_heads": 2,
        "init_std": 0.5,
    }
    model = build_model(ModelConfig(**(shape | choices))).double()
    model.compute_in(torch.float64)
    return model


def batch_of(B: int, T: int, missing: float = 0.3) -> Batch:
    generator = torch.Generator().manual_seed(B + T)
    tokens = torch.randint(V, (B, T + 1), generator=generator)
    targets = tokens[:, 1:].masked_fill(torch.rand(B, T, generator=generator) < missing, -100)
    return Batch(tokens=tokens[:, :-1], targets=targets, seed=0)


SHAPES = [pytest.param(2, 8, id="even"), pytest.param(3, 13, id="ragged"), pytest.param(1, 1, id="one")]
MODELS = [
    pytest.param({}, id="tied"),
    pytest.param({"tied_embeddings": False, "head_bias": True}, id="own-weight-bias"),
    pytest.param({"logit_softcap": 2.0}, id="softcap"),
    pytest.param({"head": "transform", "logit_softcap": 2.0, "head_bias": True}, id="transform-softcap"),
]
LOSSES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2},
    {"z_loss": 0.01},
    {"label_smoothing": 0.1, "z_loss": 0.001},
]


@pytest.mark.parametrize("B, T", SHAPES)
@pytest.mark.parametrize("choices", LOSSES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_loss_and_gradient_are_those_of_cross_entropy(
    model: dict[str, Any], choices: dict[str, Any], B: int, T: int
) -> None:
    decoder, batch = make(**model), batch_of(B, T, missing=0.3 if T > 1 else 0.0)
    objective = CausalLM(ObjectiveConfig(**choices))
    loss = objective.step(decoder, objective.prepare(batch))
    assert batch.targets is not None
    logits, targets = decoder.logits(batch.tokens).flatten(0, 1), batch.targets.flatten()
    truth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=choices.get("label_smoothing", 0.0))
    truth = truth + choices.get("z_loss", 0.0) * logits[targets != -100].logsumexp(-1).square().sum()
    assert loss.total.dtype == torch.float64
    assert abs(loss.total - truth) < 1e-12 * truth
    assert loss.count == (targets != -100).sum()
    parameters = list(decoder.parameters())
    ours = torch.autograd.grad(loss.total, parameters)
    theirs = torch.autograd.grad(truth, parameters)
    largest = max(gradient.abs().max() for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-12 * largest


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    decoder, batch = make(), batch_of(2, 5, missing=2.0)
    loss = CausalLM(ObjectiveConfig()).step(decoder, batch)
    assert loss.count == 0 and loss.total == 0
    loss.total.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in decoder.parameters())


def test_prepare_changes_nothing_and_asks_for_targets() -> None:
    objective, batch = CausalLM(ObjectiveConfig()), batch_of(2, 5)
    assert objective.prepare(batch) is batch
    with pytest.raises(ValueError, match="needs batches with next-token targets; make the loader with shift=True"):
        objective.prepare(Batch(tokens=batch.tokens))


def test_padding_segments_and_positions_reach_the_model() -> None:
    decoder = make(position="rotary")
    rows = torch.randint(V, (1, 7))
    packed = Batch(
        tokens=rows,
        targets=torch.tensor([[1, 2, -100, 3, 4, 5, -100]]),
        segments=torch.tensor([[0, 0, 0, 1, 1, 1, 1]]),
        positions=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    )
    objective = CausalLM(ObjectiveConfig())
    targets = torch.tensor([[1, 2, -100, -100], [3, 4, 5, -100]])
    first, second = rows[0, :3], rows[0, 3:]
    padded = Batch(tokens=torch.stack([torch.cat([first, first[:1]]), second]), targets=targets)
    alone = Batch(tokens=padded.tokens, targets=targets, lengths=torch.tensor([3, 4]))
    left = Batch(
        tokens=torch.stack([torch.cat([first[:1], first]), second]),
        targets=torch.tensor([[-100, 1, 2, -100], [3, 4, 5, -100]]),
        starts=torch.tensor([1, 0]),
    )
    losses: list[Tensor] = [objective.step(decoder, b).total for b in (packed, alone, left)]
    assert max(losses) - min(losses) < 1e-10
