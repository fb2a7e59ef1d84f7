"""R-Drop against its formula, written out with PyTorch's own divergences, and against one pass where nothing drops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import distributions, nn

from minillm.data.batch import Batch, has_target
from minillm.finetune.regularisers.r_drop import RDrop, divergence
from minillm.training.gradient import add_gradient, targets_in

TASKS = ["single_label", "multi_label", "regression", "tagging", "question_answering", "prompt_answer"]


def distribution(task: str, logits: torch.Tensor) -> distributions.Distribution:
    """Return what the logits say, as PyTorch has it."""
    if task == "multi_label":
        return distributions.Bernoulli(logits=logits)
    if task == "regression":
        return distributions.Normal(logits, torch.ones_like(logits))
    return distributions.Categorical(logits=logits)


def symmetric(task: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return half the sum of both divergences."""
    p, q = distribution(task, first), distribution(task, second)
    return 0.5 * (distributions.kl_divergence(p, q) + distributions.kl_divergence(q, p))


def gradient(model: nn.Module, objective, batch: Batch, micro_batches: int) -> list[torch.Tensor]:
    """Return the gradient of every parameter, as the trainer takes it."""
    model.zero_grad()
    count = targets_in(batch)
    _, excess = add_gradient(
        model, objective, batch, count=count, micro_batches=micro_batches, device=torch.device("cpu")
    )
    assert abs(float(excess)) < 1e-5 * count
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(5, 3), (2, 7, 4), (1, 1)], ids=["texts", "tokens", "one"])
def test_the_divergence_is_pytorchs(task, shape):
    first, second = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    truth = symmetric(task, first.double(), second.double())
    torch.testing.assert_close(divergence(task, first, second).double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_the_formula_over_two_passes(task, weighted, plain_task, task_model, ragged_batch):
    """The second pass is found by listening; sums, weights, padding and count are written out, gradients taken."""
    model, batch, plain = task_model(task, dropout=0.3), ragged_batch(task, weighted=weighted), plain_task(task)
    seeds: list[int] = []
    model.register_forward_pre_hook(lambda m, i, named: seeds.append(named["seed"]), with_kwargs=True)
    found = RDrop(plain, alpha=2.0).step(model, batch)
    assert len(seeds) == 2 and seeds[0] == batch.seed
    first, second = (plain.outputs(model, dataclasses.replace(batch, seed=seed)) for seed in tuple(seeds))
    assert not torch.allclose(first, second, atol=1e-3)
    weights = torch.ones(batch.targets.shape) if batch.weights is None else batch.weights
    there = has_target(batch.targets)
    apart = symmetric(task, first.double(), second.double())
    apart = apart.flatten() if task == "prompt_answer" else apart.view(batch.targets.shape)[there]
    truth = 0.5 * (plain.loss(first, batch).total + plain.loss(second, batch).total)
    truth = truth + 2.0 * (weights[there] * apart).sum()
    torch.testing.assert_close(found.total, truth.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.count, weights[there].sum())
    for ours, expected in zip(
        *(torch.autograd.grad(total, list(model.parameters()), allow_unused=True) for total in (found.total, truth)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_without_dropout_it_is_the_tasks_own_loss(task, plain_task, task_model, ragged_batch):
    model, batch, plain = task_model(task), ragged_batch(task), plain_task(task)
    torch.testing.assert_close(RDrop(plain, alpha=5.0).step(model, batch).total, plain.step(model, batch).total)


def test_both_passes_get_a_gradient(plain_task, task_model, ragged_batch):
    """With alpha alone and the first pass held still, the second one still moves."""
    model, batch = task_model(dropout=0.3), ragged_batch()
    first, second = (model(batch.tokens, lengths=batch.lengths, seed=seed) for seed in (1, 2))
    for output in torch.autograd.grad(divergence("single_label", first, second).sum(), (first, second)):
        assert (output.abs().sum(dim=1) > 0).all()


class Alternating(nn.Module):
    """Logits a tenth lower in every second pass, whatever the seed: dropout that no cut of the batch moves."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
        self.passes = 0

    def forward(self, tokens: torch.Tensor, **inputs) -> torch.Tensor:
        self.passes += 1
        return self.table[tokens] * (1.0 if self.passes % 2 else 0.9)


@pytest.mark.parametrize("k", [2, 4])
def test_micro_batches_of_unequal_counts_give_the_gradient_of_one_batch(k, plain_task, ragged_batch):
    model, batch, objective = Alternating(), ragged_batch("tagging", weighted=True), RDrop(plain_task("tagging"), 3.0)
    (whole,), (parts,) = gradient(model, objective, batch, 1), gradient(model, objective, batch, k)
    torch.testing.assert_close(parts, whole)
    (plain,) = gradient(model, plain_task("tagging"), batch, 1)
    assert not torch.allclose(plain, whole, rtol=1e-2)  # the divergence takes part


def test_evaluation_takes_one_pass(plain_task, task_model, ragged_batch):
    model, batch, plain = task_model(dropout=0.3).eval(), ragged_batch(), plain_task("single_label")
    passes: list[int] = []
    model.register_forward_hook(lambda m, i, o: passes.append(1))
    with torch.no_grad():
        found = RDrop(plain, alpha=2.0).step(model, batch)
    assert len(passes) == 1
    assert found.total == plain.step(model, batch).total


def test_no_two_micro_batches_share_a_dropout_pattern(plain_task, ragged_batch):
    """Seeds of neighbouring micro-batches are neighbours; second passes must not fall on them."""
    seeds: list[int] = []

    class Listening(Alternating):
        def forward(self, tokens: torch.Tensor, **inputs) -> torch.Tensor:
            seeds.append(inputs["seed"])
            return super().forward(tokens)

    gradient(Listening(), RDrop(plain_task("tagging"), 1.0), ragged_batch("tagging"), 4)
    assert len(seeds) == len(set(seeds)) == 8


def test_prepare_is_the_tasks(plain_task, ragged_batch):
    class Marking(plain_task):
        def prepare(self, batch: Batch) -> Batch:
            return dataclasses.replace(batch, seed=99)

    assert RDrop(Marking("single_label"), 1.0).prepare(ragged_batch()).seed == 99
