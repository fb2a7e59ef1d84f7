"""The loop: what it learns is what the formula says, and nothing around it changes that by one bit."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch

from minillm.checkpoint.native import tensors_of
from minillm.errors import InputError
from minillm.training.config import OptimConfig
from minillm.training.records import read_columns
from minillm.training.schedule import learning_rate_share


def bits(trainer) -> str:
    """Return a digest of all weights."""
    digest = hashlib.sha256()
    for tensor in tensors_of(trainer.model).values():
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2], ids=["whole", "rows", "pairs"])
def test_the_loop_equals_a_loop_of_ten_lines(parts, make_trainer, micro_batch_size):
    config, optim = parts.Config(dropout=0.0), OptimConfig(name="sgd", learning_rate=0.1, warmup_steps=2)
    objective, loader = parts.Objective(penalty=0.01), parts.Loader()
    trainer = make_trainer(
        config=config, optim=optim, objective=objective, micro_batch_size=micro_batch_size, grad_clip=0.5, max_steps=6
    )
    trainer.model.double()
    trainer.fit()

    model = parts.Model(config).double()
    decays = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    plain = torch.optim.SGD(groups, lr=1.0, momentum=optim.momentum)
    for step in range(6):
        plain.zero_grad()
        loss = objective.step(model, objective.prepare(loader.batch(step)))
        (loss.total / loss.count + loss.extra).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in plain.param_groups:
            group["lr"] = 0.1 * learning_rate_share(step, optim, 6)
        plain.step()
    for ours, truth in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)  # float64; only the order of sums differs


def test_same_seed_gives_the_same_bits(make_trainer):
    first, second = make_trainer("first"), make_trainer("second")
    first.fit()
    torch.rand(5)  # the global generator's state plays no part
    second.fit()
    assert bits(first) == bits(second)
    assert first.folder.metrics_path.read_bytes() == second.folder.metrics_path.read_bytes()
    for file in ("model.safetensors", "optimiser.safetensors", "state.json", "config.json"):
        one, two = ((run.folder.folder_of(12) / file).read_bytes() for run in (first, second))
        assert one == two, file


def test_another_seed_gives_others(parts, make_trainer):
    first, second = make_trainer("first"), make_trainer("second", loader=parts.Loader(seed=1))
    first.fit()
    second.fit()
    assert bits(first) != bits(second)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"log_every": 5}, id="log"),
        pytest.param({"eval_every": 1}, id="evaluate-often"),
        pytest.param({"eval_every": 0}, id="evaluate-at-the-end"),
        pytest.param({"checkpoint_every": 1}, id="save-often"),
        pytest.param({"checkpoint_every": 0, "keep_checkpoints": 3}, id="save-at-the-end"),
        pytest.param({"threads": 1}, id="threads"),
    ],
)
def test_logging_evaluating_and_saving_change_no_weight(make_trainer, settings):
    plain, other = make_trainer("plain"), make_trainer("other", **settings)
    plain.fit()
    other.fit()
    assert bits(plain) == bits(other)


def test_evaluation_draws_from_no_generator_that_training_sees(make_trainer):
    trainer = make_trainer(eval_every=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trainer.fit()
    assert torch.equal(torch.rand(1), expected)


def test_rows_come_at_the_first_step_every_interval_evaluations_and_the_end(make_trainer):
    trainer = make_trainer(log_every=5, eval_every=4, checkpoint_every=3, max_steps=11)
    summary = trainer.fit()
    rows = read_columns(trainer.folder.metrics_path)
    assert rows["step"] == [1, 4, 5, 8, 10, 11]
    assert [value is None for value in rows["valid_loss"]] == [True, False, True, False, True, False]
    assert read_columns(trainer.folder.timing_path)["step"] == rows["step"]
    assert (summary.steps, summary.train_loss, summary.stopped_early) == (11, pytest.approx(rows["loss"][-1]), False)
    assert summary.valid_loss == pytest.approx(rows["valid_loss"][-1])
    assert summary.tokens == rows["tokens"][-1] == sum(int(trainer.loader.batch(s).lengths.sum()) for s in range(11))
    optim = trainer.optim
    expected = [optim.learning_rate * learning_rate_share(step - 1, optim, 11) for step in rows["step"]]
    assert rows["learning_rate"] == pytest.approx(expected, rel=1e-8)


def test_loss_and_norm_of_a_row_are_those_before_its_update(parts, make_trainer):
    trainer = make_trainer(config=parts.Config(dropout=0.0), max_steps=1, grad_clip=0.1)
    model, objective = parts.Model(parts.Config(dropout=0.0)), parts.Objective()
    loss = objective.step(model, objective.prepare(parts.Loader().batch(0)))
    (loss.total / loss.count).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    trainer.fit()
    rows = read_columns(trainer.folder.metrics_path)
    assert rows["loss"] == [pytest.approx((loss.total / loss.count).item(), rel=1e-6)]
    assert rows["grad_norm"] == [pytest.approx(float(norm), rel=1e-5)]


def test_it_learns(make_trainer):
    trainer = make_trainer(optim=OptimConfig(learning_rate=0.1), max_steps=200, eval_every=0, checkpoint_every=0)
    trainer.fit()
    rows = read_columns(trainer.folder.metrics_path)
    assert rows["loss"][0] > 0.8 * math.log(11) and rows["valid_loss"][-1] < 0.5 * math.log(11)


def test_hooks_see_the_whole_gradient_and_the_new_weights(parts, make_trainer):
    trainer = make_trainer(config=parts.Config(dropout=0.0), max_steps=3, micro_batch_size=1)
    before, gradients, steps = [bits(trainer)], [], []
    trainer.after_backward.append(lambda t: gradients.append((t.state.step, t.model.up.weight.grad.clone())))
    trainer.after_step.append(lambda t: (steps.append(t.state.step), before.append(bits(t))))
    model, objective = parts.Model(parts.Config(dropout=0.0)), parts.Objective()
    loss = objective.step(model, objective.prepare(parts.Loader().batch(0)))
    (loss.total / loss.count).backward()
    trainer.fit()
    assert steps == [1, 2, 3] and [step for step, _ in gradients] == [0, 1, 2]
    assert len(set(before)) == 4
    torch.testing.assert_close(gradients[0][1], model.up.weight.grad, rtol=1e-5, atol=1e-7)


def test_a_step_without_targets_changes_nothing_but_the_count(parts, make_trainer):
    class SometimesEmpty(parts.Objective):
        def prepare(self, batch):
            batch = super().prepare(batch)
            return replace(batch, targets=torch.full_like(batch.targets, -100)) if batch.seed in (17, 34) else batch

    trainer = make_trainer(objective=SometimesEmpty(), max_steps=4)
    seen, begun = [bits(trainer)], []
    trainer.before_step.append(lambda t: begun.append(t.state.step))
    trainer.after_step.append(lambda t: seen.append(bits(t)))
    trainer.fit()
    rows = read_columns(trainer.folder.metrics_path)
    assert begun == [0, 1, 2, 3]
    assert len(seen) == 3  # the start, step 1, step 4
    assert rows["step"] == [1, 2, 3, 4] and [value is None for value in rows["loss"]] == [False, True, True, False]
    assert trainer.state.empty_steps == 2 and trainer.state.step == 4


def test_objective_that_counts_other_targets_is_a_defect(parts, make_trainer):
    class Miscounts(parts.Objective):
        def step(self, model, batch):
            loss = super().step(model, batch)
            return replace(loss, count=loss.count + 1)

    with pytest.raises(ValueError, match=r"step 1: the objective counted \+1 targets beside those"):
        make_trainer(objective=Miscounts()).fit()


def test_fitting_a_finished_run_again_changes_nothing(make_trainer):
    trainer = make_trainer()
    trainer.fit()
    before, rows = bits(trainer), trainer.folder.metrics_path.read_bytes()
    summary = trainer.fit()
    assert (bits(trainer), trainer.folder.metrics_path.read_bytes()) == (before, rows)
    assert summary.steps == 12 and not summary.stopped_early


def test_training_mode_is_given_back(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.model.eval()
    trainer.fit()
    assert not trainer.model.training


class TestFloat16:
    """Loss scaling, as it runs on a CPU too."""

    def test_weights_stay_near_those_of_float32(self, parts, make_trainer):
        config, sgd = parts.Config(dropout=0.0), OptimConfig(name="sgd", learning_rate=0.1, warmup_steps=0)
        half = make_trainer("half", config=config, optim=sgd, compute_dtype=torch.float16)
        full = make_trainer("full", config=config, optim=sgd)
        half.fit()
        full.fit()
        start = parts.Model(config)
        way = sum((a - b).norm() for a, b in zip(full.model.parameters(), start.parameters(), strict=True))
        apart = sum((a - b).norm() for a, b in zip(half.model.parameters(), full.model.parameters(), strict=True))
        assert half.scaler is not None and half.scaler.get_scale() == 65536.0
        assert 0 < apart < 0.02 * way  # float16 carries 11 bits; momentum lets errors of 12 steps add up

    def test_small_gradients_do_not_vanish(self, parts, make_trainer):
        """Gradients of 1e-8 are zero in float16 when they are not scaled."""

        class Faint(parts.Objective):
            def step(self, model, batch):
                loss = super().step(model, batch)
                return replace(loss, total=loss.total * 1e-8)

        trainer = make_trainer(objective=Faint(), compute_dtype=torch.float16, max_steps=1)
        norms = []
        trainer.after_backward.append(lambda t: norms.append(t.model.up.weight.grad.norm().item()))
        trainer.fit()
        assert 0 < norms[0] < 1e-7

    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    def test_overflow_leaves_weights_alone_and_lowers_the_scale(self, make_trainer, name):
        optim = OptimConfig(name=name, warmup_steps=0)
        trainer = make_trainer(optim=optim, compute_dtype=torch.float16, max_steps=1)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        before = bits(trainer)
        trainer.fit()
        assert bits(trainer) == before and trainer.scaler.get_scale() == 2.0**39
        assert read_columns(trainer.folder.metrics_path)["grad_norm"][0] in (
            math.inf,
            pytest.approx(math.nan, nan_ok=True),
        )

    @pytest.mark.parametrize("rule", ["stop", "skip"])
    def test_a_gradient_that_no_scale_mends_stops_the_run(self, make_trainer, rule):
        """The scale of 2**16 is below 1 after 17 halvings."""
        trainer = make_trainer(compute_dtype=torch.float16, max_steps=60, on_non_finite=rule)
        trainer.model.up.bias.register_hook(lambda gradient: gradient * math.nan)
        with pytest.raises(InputError, match="gradient is no longer a finite number at step 17; it overflows float16"):
            trainer.fit()

    def test_a_skipped_loss_leaves_the_scale(self, parts, make_trainer):
        """However many there are: no scale is to blame for them."""

        class Broken(parts.Objective):
            def step(self, model, batch):
                loss = super().step(model, batch)
                return replace(loss, total=loss.total * math.nan)

        rule = {"on_non_finite": "skip", "max_skips_in_a_row": 99}
        trainer = make_trainer(objective=Broken(), compute_dtype=torch.float16, max_steps=20, eval_every=20, **rule)
        assert trainer.fit().steps == 20 and trainer.scaler.get_scale() == 2.0**16

    def test_scale_is_resumed(self, make_trainer):
        optim, scaled = OptimConfig(warmup_steps=0, schedule="constant"), {"compute_dtype": torch.float16}
        through = make_trainer("through", optim=optim, **scaled)
        first = make_trainer("first", optim=optim, max_steps=4, **scaled)
        for trainer in (through, first):
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**32)
            trainer.fit()
        second = make_trainer("first", optim=optim, **scaled)
        assert second.resume() == 4
        second.fit()
        assert bits(second) == bits(through)
        assert second.scaler.state_dict() == through.scaler.state_dict()
        assert second.scaler.get_scale() < 2.0**32
