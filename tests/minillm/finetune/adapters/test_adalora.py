"""AdaLoRA in a trainer: the penalty in training alone, sensitivities from the step's gradient, the budget kept."""

import copy
import dataclasses

import pytest
import torch

from minillm.data.batch import Batch
from minillm.finetune.adapters.adalora import RankAllocator, WithOrthogonality, orthogonality, updates
from minillm.finetune.adapters.attach import attach
from minillm.finetune.adapters.config import AdaLoRAConfig, LoRAConfig

CONFIG = AdaLoRAConfig(rank=4, target_rank=2, initial_fraction=0.2, final_fraction=0.4, prune_every=2)
TARGETS = 2 * 6  # linear layers in two blocks


@pytest.fixture
def adapted(stand_in):
    model = stand_in("encoder-pre")
    torch.manual_seed(5)
    attach(model, CONFIG)
    return model


def test_the_factors_begin_as_the_page_says(stand_in):
    """A and B from N(0, 0.02^2), whatever the layer's size, and E at 0."""
    model = stand_in("encoder-pre")
    torch.manual_seed(5)
    attach(model, AdaLoRAConfig(rank=40, target_rank=2))
    for letter, deviation in (("A", 0.02), ("B", 0.02), ("E", 0.0)):
        drawn = torch.cat([part.factors()[letter].detach().flatten() for part in updates(model, "adapter")])
        assert drawn.std().item() == pytest.approx(deviation, rel=0.05)
        assert drawn.mean().item() == pytest.approx(0.0, abs=1e-3)


def test_the_penalty_is_in_the_loss_in_training_and_never_in_evaluation(adapted, classify):
    objective = WithOrthogonality(classify, "adapter")
    tokens = torch.arange(12).reshape(2, 6)
    batch = objective.prepare(Batch(tokens=tokens, targets=torch.tensor([[0], [1]]), seed=1))
    evaluated, plain = objective.step(adapted, batch), classify.step(adapted, batch)
    assert evaluated.extra is None and torch.equal(evaluated.total, plain.total)
    trained = objective.step(adapted.train(), batch)
    assert torch.equal(trained.extra, orthogonality(adapted, "adapter")) and trained.extra > 0
    assert torch.equal(trained.total, classify.step(adapted, batch).total) and trained.count == 2

    class WithExtra:
        prepare = classify.prepare

        def step(self, model, batch):
            return dataclasses.replace(classify.step(model, batch), extra=torch.tensor(0.25))

    both = WithOrthogonality(WithExtra(), "adapter").step(adapted, batch)
    assert torch.equal(both.extra, 0.25 + trained.extra)


def test_the_penalty_is_the_mean_distance_from_orthonormal(adapted):
    """In float64, and 0 for factors that are; its gradient there is finite."""
    factors = [(part.A.weight, part.B.weight) for part in updates(adapted, "adapter")]
    one = torch.eye(4, dtype=torch.float64)
    distances = [(A.double() @ A.double().T - one).norm() for A, _ in factors]
    distances += [(B.double().T @ B.double() - one).norm() for _, B in factors]
    truth = CONFIG.orthogonality * sum(distances) / len(distances)
    assert len(distances) == 2 * TARGETS
    torch.testing.assert_close(orthogonality(adapted, "adapter").double(), truth, rtol=1e-6, atol=0)
    with torch.no_grad():
        for A, B in factors:
            A.copy_(torch.eye(*A.shape))
            B.copy_(torch.eye(*B.shape))
    penalty = orthogonality(adapted, "adapter")
    penalty.backward()
    assert penalty == 0 and all(A.grad.isfinite().all() and B.grad.isfinite().all() for A, B in factors)


@pytest.mark.parametrize("penalised", [True, False])
def test_the_penalty_draws_the_factors_together(adapted, classify, make_trainer, penalised):
    """To less than half the distance in 30 steps; without it they stay as far apart as they were."""
    before = orthogonality(adapted, "adapter").item()
    make_trainer(adapted, WithOrthogonality(classify, "adapter") if penalised else classify, max_steps=30).fit()
    after = orthogonality(adapted, "adapter").item()
    assert after < 0.5 * before if penalised else after > 0.9 * before


@pytest.mark.parametrize(
    "config, steps, budgets",
    [
        # t_i = 2, t_f = 6: (1 - (t - 2) / 4)^3 = 1, 27/64, 1/8, 1/64, 0
        (CONFIG, 10, [48, 48, 24 + 10, 24 + 3, 24, 24, 24, 24, 24, 24]),
        (dataclasses.replace(CONFIG, target_rank=4), 4, [48] * 4),
        (dataclasses.replace(CONFIG, initial_fraction=0.0, final_fraction=1.0), 3, [24] * 3),
        (dataclasses.replace(CONFIG, initial_fraction=1.0, final_fraction=0.0), 3, [48] * 3),
        (CONFIG, 1, [24]),
    ],
    ids=["cubic", "nothing-to-prune", "from-the-start", "never", "one-step"],
)
def test_the_budget_is_the_schedule_of_the_formula(adapted, config, steps, budgets):
    for part in updates(adapted, "adapter"):
        part.config = config
    allocator = RankAllocator(adapted, "adapter", steps=steps)
    assert [allocator.budget(step) for step in range(1, steps + 1)] == budgets


def test_the_trainer_steps_it(adapted, classify, make_trainer):
    """After each pruning as many triplets live as the budget has; in the end target_rank each on the mean."""
    trainer = make_trainer(adapted, WithOrthogonality(classify, "adapter"), max_steps=20)
    allocator = RankAllocator(adapted, "adapter", steps=20)
    allocator.connect(trainer)
    alive = []
    trainer.after_step.append(lambda t: alive.append(sum(int(u.E.ne(0).sum()) for u in updates(adapted, "adapter"))))
    trainer.fit()
    assert (allocator.first, allocator.last) == (4, 12)
    assert max(alive[:5]) == 48  # the first pruning is after step 6
    for step in (6, 8, 10, 12, *range(13, 21)):
        assert alive[step - 1] == allocator.budget(step)
    assert alive[-1] == 24 and alive[6] > alive[5]  # what is pruned grows back until t_f
    assert len({int(u.E.ne(0).sum()) for u in updates(adapted, "adapter")}) > 1  # shared out, not cut alike


def test_the_running_mean_of_the_weights_is_pruned_with_them(adapted, classify, make_trainer):
    """What is judged and saved has no more triplets than the budget; of those that are kept it is a mean still."""
    trainer = make_trainer(adapted, WithOrthogonality(classify, "adapter"), max_steps=20, ema_decay=0.9)
    RankAllocator(adapted, "adapter", steps=20).connect(trainer)
    parts = updates(adapted, "adapter")
    trainer.fit()
    weights = torch.cat([part.E.detach().clone() for part in parts])  # (n * r, 1)
    with trainer.averaged():
        judged = torch.cat([part.E.detach().clone() for part in parts])
    saved = trainer.folder.load("latest").model_tensors()
    assert weights.ne(0).sum() == 24 and torch.equal(judged.ne(0), weights.ne(0))
    assert sum(int(value.ne(0).sum()) for name, value in saved.items() if name.endswith(".E")) == 24
    kept = weights.ne(0)
    assert not torch.equal(judged[kept], weights[kept])


def test_sensitivities_are_those_of_the_gradient_before_clipping_and_the_weights_before_the_step(
    adapted, classify, make_trainer
):
    """The first mean is (1 - beta1) |p dL/dp|, its stray (1 - beta2) beta1 |p dL/dp|."""
    trainer = make_trainer(adapted, classify, max_steps=1, grad_clip=1e-3)
    products = {}

    def note(trainer):
        for number, part in enumerate(updates(adapted, "adapter")):
            for letter, p in part.factors().items():
                products[number, letter] = (p * p.grad).abs().detach().clone()

    with torch.no_grad():
        for part in updates(adapted, "adapter"):
            part.E.normal_()
            part.config = dataclasses.replace(CONFIG, beta1=0.8, beta2=0.9)
    trainer.after_backward.append(note)
    RankAllocator(adapted, "adapter", steps=10).connect(trainer)
    trainer.fit()
    for number, part in enumerate(updates(adapted, "adapter")):
        for letter in "AEB":
            now = products[number, letter]
            torch.testing.assert_close(getattr(part, f"sensitivity_{letter}"), (1 - 0.8) * now)
            torch.testing.assert_close(getattr(part, f"uncertainty_{letter}"), (1 - 0.9) * 0.8 * now)
    assert max(now.max() for now in products.values()) > 1e-4


def test_past_the_last_pruning_step_the_scores_stand(adapted, classify, make_trainer):
    """Up to t_f every step renews the running means, and none does after it."""
    trainer = make_trainer(adapted, classify, max_steps=10)
    allocator = RankAllocator(adapted, "adapter", steps=10)
    allocator.connect(trainer)
    means = []
    trainer.after_step.append(lambda _: means.append([p.sensitivity_A.clone() for p in updates(adapted, "adapter")]))
    trainer.fit()
    assert allocator.last == 6
    for step in range(2, 11):
        same = all(torch.equal(a, b) for a, b in zip(means[step - 2], means[step - 1], strict=True))
        assert same == (step > 6), step


def test_a_gradient_that_overflowed_leaves_the_means_alone(adapted):
    part = updates(adapted, "adapter")[0]
    for parameter in part.factors().values():
        parameter.grad = torch.ones_like(parameter)
    part.observe()
    before = {letter: getattr(part, f"sensitivity_{letter}").clone() for letter in "AEB"}
    part.A.weight.grad[0, 0] = torch.inf
    part.observe()
    assert torch.equal(part.sensitivity_A, before["A"]) and not torch.equal(part.sensitivity_B, before["B"])


def test_a_skipped_step_leaves_all_means_alone(adapted, classify, make_trainer):
    """Also those of weights whose own gradient was finite."""
    trainer = make_trainer(adapted, classify, max_steps=3, on_non_finite="skip")
    RankAllocator(adapted, "adapter", steps=10).connect(trainer)
    adapted.head.bias.register_hook(lambda g: torch.full_like(g, torch.inf) if trainer.state.step == 1 else g)
    before = {}
    trainer.before_step.append(lambda t: before.setdefault(t.state.step, copy.deepcopy(adapted.state_dict())))
    trainer.fit()
    assert trainer.state.skipped_steps == 1
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in before[2].items())
    assert not all(torch.equal(tensor, before[0][name]) for name, tensor in before[1].items())


def test_only_an_attached_adalora_is_stepped(stand_in):
    model = stand_in()
    attach(model, LoRAConfig())
    for name in ("adapter", "other"):
        with pytest.raises(ValueError, match=f"no AdaLoRA adapter is attached under the name '{name}'"):
            RankAllocator(model, name, steps=10)
