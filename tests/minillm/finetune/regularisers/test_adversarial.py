"""FGM and PGD against the closed form of a linear model, and that they bite whatever is frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

import minillm_kernels
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.data.batch import IGNORED, Batch
from minillm.finetune.embedding_output import changed_embeddings
from minillm.finetune.regularisers.adversarial import Adversarial
from minillm.finetune.regularisers.config import RegulariserConfig, regularised
from minillm.finetune.regularisers.r_drop import RDrop
from minillm.model.layers import Linear
from minillm.training.gradient import add_gradient, targets_in

EPSILON = 0.5
KINDS = [
    pytest.param({"kind": "encoder"}, id="encoder"),
    pytest.param({"kind": "decoder"}, id="decoder"),
    pytest.param({"kind": "encoder", "norm_position": "post", "embedding_norm": True}, id="bert"),
]


class Rows(nn.Module):
    """An embedding table and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens]


class Linearly(nn.Module):
    """Two logits a text: 0 and the sum over its real tokens of w . e."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embeddings = Rows()
        self.w = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(2)))

    def forward(self, tokens: Tensor, *, lengths: Tensor, **inputs: Any) -> Tensor:
        scores = self.backbone.embeddings(tokens) @ self.w  # (B, T)
        z = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], scores, 0.0).sum(dim=1)
        return torch.stack([torch.zeros_like(z), z], dim=1)


class LowRank(nn.Module):
    """LoRA around a linear layer that stays as it is: y = W x + B A x, B = 0 at the start."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


def everything(model: Any) -> None:
    """Train all parameters."""


def frozen_embeddings(model: Any) -> None:
    """Train all but the embeddings."""
    model.backbone.embeddings.requires_grad_(False)


def head_alone(model: Any) -> None:
    """Train the head."""
    model.backbone.requires_grad_(False)


def lora(model: Any) -> None:
    """Train the head and low-rank updates of queries and values."""
    model.backbone.requires_grad_(False)
    for block in model.backbone.blocks:
        block.attention.q, block.attention.v = LowRank(block.attention.q), LowRank(block.attention.v)


@pytest.mark.parametrize("steps", [1, 3])
def test_on_a_linear_model_the_attack_is_the_closed_form(steps, plain_task, ragged_batch):
    """|delta| = eps along w lowers the margin of a text of n tokens by eps |w| sqrt(n): all of it, in any number of
    steps."""
    model, batch = Linearly(), ragged_batch(outputs=2)
    _, attacked = Adversarial(plain_task("single_label"), EPSILON, steps).losses(model, batch)
    with torch.no_grad():
        z = model(batch.tokens, lengths=batch.lengths)[:, 1].double()
        margin = torch.where(batch.targets == 1, z, -z) - EPSILON * model.w.double().norm() * batch.lengths.sqrt()
    torch.testing.assert_close(attacked.total.double(), F.softplus(-margin).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("trained", [everything, frozen_embeddings, head_alone, lora])
def test_the_adversarial_loss_is_higher_whatever_is_trained(trained, shape, plain_task, task_model, ragged_batch):
    model, batch = task_model(dropout=0.1, **shape), ragged_batch()
    trained(model)
    clean, attacked = Adversarial(plain_task("single_label"), EPSILON).losses(model, batch)
    assert attacked.total.item() > 1.02 * clean.total.item()
    attacked.total.backward()
    asked = [p for p in model.parameters() if p.requires_grad]
    assert asked and all(p.grad is not None for p in asked)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression", "tagging"])
def test_the_adversarial_loss_is_higher_for_every_task(task, plain_task, task_model, ragged_batch):
    model, batch = task_model(task), ragged_batch(task)
    clean, attacked = Adversarial(plain_task(task), 0.1).losses(model, batch)
    assert attacked.total.item() > clean.total.item()
    assert attacked.count == clean.count


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("steps", [1, 3])
def test_each_text_is_shifted_by_epsilon_at_most_and_padding_by_nothing(
    left, steps, plain_task, task_model, ragged_batch
):
    model, batch = task_model(), ragged_batch(left=left)
    seen: list[Tensor] = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    Adversarial(plain_task("single_label"), EPSILON, steps).losses(model, batch)
    delta = seen[-1] - seen[0]
    assert len(seen) == steps + 1
    lengths = delta.flatten(1).norm(dim=1)
    assert (lengths <= EPSILON * 1.0001).all()
    assert (lengths > EPSILON * (0.9999 if steps == 1 else 0.9)).all()  # PGD may turn and end inside
    assert not delta[~batch.real()].any()


def test_every_step_of_pgd_follows_the_gradient_at_the_shift_before(plain_task, task_model, ragged_batch):
    """The formula by hand: a stride of 3/2 eps / K along it, then back to eps where that is longer."""
    steps, model, batch, plain = 4, task_model(), ragged_batch(), plain_task("single_label")
    seen: list[Tensor] = []
    handle = model.backbone.blocks[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    Adversarial(plain, EPSILON, steps).losses(model, batch)
    handle.remove()
    assert len(seen) == steps + 1
    for before, after in zip(seen, seen[1:], strict=False):
        point = before.clone().requires_grad_()
        with changed_embeddings(model.backbone, lambda e, point=point: point):
            (gradient,) = torch.autograd.grad(plain.step(model, batch).total, point)
        gradient = gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        moved = before - seen[0] + 1.5 * EPSILON / steps * gradient
        length = moved.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(after - seen[0], moved * (EPSILON / length).clamp(max=1.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("steps", [1, 3])
def test_packed_texts_are_shifted_as_each_by_itself(steps, kind, plain_task, task_model):
    """Texts of 3, 2 and 1 tokens, a row each, or the first two in one."""
    tokens, targets = torch.tensor([3, 5, 7, 11, 13, 17]), torch.tensor([0, 2, 1, 1, 0, 2])

    def laid_out(values, *rows, fill):
        cut = iter(values.tolist())
        return torch.tensor([[next(cut) if column < n else fill for column in range(max(rows))] for n in rows])

    apart, packed = (
        Batch(
            tokens=laid_out(tokens, *rows, fill=0),
            lengths=torch.tensor(rows),
            targets=laid_out(targets, *rows, fill=IGNORED),
            seed=1,
        )
        for rows in ((3, 2, 1), (5, 1))
    )
    packed = dataclasses.replace(
        packed,
        segments=torch.tensor([[0, 0, 0, 1, 1], [0, -1, -1, -1, -1]]),
        positions=torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]),
    )
    objective, model = Adversarial(plain_task("tagging"), EPSILON, steps), task_model("tagging", kind=kind)
    (clean, attacked), (truth, worst) = objective.losses(model, packed), objective.losses(model, apart)
    torch.testing.assert_close(clean.total, truth.total)
    torch.testing.assert_close(attacked.total, worst.total)
    assert worst.total.item() > 1.02 * truth.total.item()


def test_pgd_hurts_at_least_as_much_as_fgm(plain_task, task_model, ragged_batch):
    model, batch = task_model(), ragged_batch()
    fgm, pgd = (Adversarial(plain_task("single_label"), EPSILON, k).losses(model, batch)[1] for k in (1, 5))
    assert pgd.total.item() > fgm.total.item()


def test_the_step_is_the_mean_of_both_losses_over_the_same_targets(plain_task, task_model, ragged_batch):
    model, batch, plain = task_model(dropout=0.1), ragged_batch(weighted=True), plain_task("single_label")
    objective = Adversarial(plain, EPSILON)
    clean, attacked = objective.losses(model, batch)
    assert torch.equal(clean.total, plain.step(model, batch).total)
    found = objective.step(model, batch)
    torch.testing.assert_close(found.total, 0.5 * (clean.total + attacked.total))
    assert found.count == clean.count


def test_both_passes_drop_the_same(plain_task, task_model, ragged_batch):
    """A shift of no length changes nothing, though a third of all activations is dropped."""
    clean, attacked = Adversarial(plain_task("single_label"), 1e-7).losses(task_model(dropout=0.3), ragged_batch())
    torch.testing.assert_close(attacked.total, clean.total, rtol=1e-4, atol=0.0)


def test_what_stands_in_grad_plays_no_part_and_stays(plain_task, task_model, ragged_batch):
    """Earlier micro-batches have left their gradients there."""
    model, batch = task_model(), ragged_batch()
    objective = Adversarial(plain_task("single_label"), EPSILON, 2)
    fresh = objective.step(model, batch).total
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    found = objective.step(model, batch).total
    assert torch.equal(found, fresh)
    assert all((p.grad == 1e3).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("task", ["single_label", "tagging"])
@pytest.mark.parametrize("k", [2, 4])
def test_micro_batches_give_the_gradient_of_one_batch(k, task, plain_task, task_model, ragged_batch):
    model, batch, objective = task_model(task), ragged_batch(task, weighted=True), Adversarial(plain_task(task), 0.2)
    found = []
    for parts in (1, k):
        model.zero_grad()
        count = targets_in(batch)
        _, excess = add_gradient(model, objective, batch, count=count, micro_batches=parts, device=torch.device("cpu"))
        assert abs(float(excess)) < 1e-5 * count
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_a_text_without_a_gradient_is_not_shifted(plain_task, task_model, ragged_batch):
    """Weight 0: its gradient is 0, and 0 / 0 must not reach the others."""
    model, batch = task_model(), ragged_batch()
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    loss = Adversarial(plain_task("single_label"), EPSILON).step(model, dataclasses.replace(batch, weights=weights))
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_evaluation_takes_one_pass_as_it_is(plain_task, task_model, ragged_batch):
    model, batch, plain = task_model(dropout=0.3).eval(), ragged_batch(), plain_task("single_label")
    with torch.no_grad():
        assert Adversarial(plain, EPSILON).step(model, batch).total == plain.step(model, batch).total


@pytest.mark.parametrize(
    "backend, dtype",
    [("reference", torch.bfloat16), ("torch", torch.bfloat16), ("torch", torch.float16), ("fused", torch.float32)],
)
def test_it_bites_on_every_backend_and_in_half_precision(backend, dtype, plain_task, task_model, ragged_batch):
    model = task_model(dtype=dtype, num_layers=1, width=8, dropout=0.1)
    batch = ragged_batch().rows(1, 2)
    batch = dataclasses.replace(batch, tokens=batch.tokens[:, :4])  # three real ones: the interpreter is slow
    with minillm_kernels.backend(backend):
        clean, attacked = Adversarial(plain_task("single_label"), EPSILON).losses(model, batch)
    assert attacked.total.item() > clean.total.item()


def test_around_r_drop_one_shift_meets_both_of_its_passes(plain_task, task_model, ragged_batch):
    model, batch, inner = task_model(dropout=0.2), ragged_batch(), RDrop(plain_task("single_label"), 1.0)
    seen: list[Tensor] = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    clean, attacked = Adversarial(inner, EPSILON).losses(model, batch)
    torch.testing.assert_close(seen[2] - seen[0], seen[3] - seen[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(clean.total, inner.step(model, batch).total)
    assert attacked.total.item() > clean.total.item()


def test_a_model_that_was_compiled_before_is_refused_aloud(plain_task, task_model, ragged_batch):
    """Its code does not know the hook: training would go on without any attack."""
    model, batch = task_model(num_layers=1), ragged_batch()
    model.compile(backend="eager")
    model(batch.tokens, **batch.model_inputs())
    with pytest.raises(ValueError, match="set train.compile=false"):
        Adversarial(plain_task("single_label"), EPSILON).step(model, batch)
    torch._dynamo.reset()


def test_the_hook_goes_with_its_block(task_model, ragged_batch):
    model, tokens = task_model(), ragged_batch().tokens
    before = model(tokens)
    with changed_embeddings(model.backbone, lambda e: 2 * e + torch.arange(16.0)):
        assert not torch.allclose(model(tokens), before)
    with pytest.raises(ZeroDivisionError), changed_embeddings(model.backbone, lambda e: e / 0):
        raise ZeroDivisionError
    assert torch.equal(model(tokens), before)


def test_a_batch_without_a_seed_is_refused(plain_task, task_model, ragged_batch):
    with pytest.raises(ValueError, match="this batch has none"):
        Adversarial(plain_task("single_label"), 1.0).step(task_model(), dataclasses.replace(ragged_batch(), seed=None))


def test_the_settings_choose_what_stands_around_the_task(plain_task):
    task = plain_task("single_label")
    assert regularised(task, RegulariserConfig()) is task
    both: Any = regularised(task, RegulariserConfig(r_drop=2.0, adversarial=0.3, adversarial_steps=4))
    assert (both.epsilon, both.steps, both.objective.alpha) == (0.3, 4, 2.0)
    assert both.objective.task is task


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r_drop": -1.0}, "r_drop must be 0 or above, got -1.0"),
        ({"adversarial": float("nan")}, "adversarial must be 0 or above, got nan"),
        ({"adversarial_steps": 0}, "adversarial_steps must be at least 1, got 0"),
        ({"adversarial_steps": 3}, "adversarial_steps is 3, and regulariser.adversarial is 0: no step is taken"),
    ],
    ids=["r-drop", "epsilon", "steps", "steps-alone"],
)
def test_settings_that_do_not_do_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RegulariserConfig(**settings)
