"""Numbers that are none are skipped within bounds or stop the run; spikes show in metrics.csv; deterministic mode."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from minillm.data.loader import Loader
from minillm.data.shards import TokenStore
from minillm.errors import InputError
from minillm.finetune.encoding import Sequences
from minillm.finetune.loader import SequenceLoader
from minillm.training.config import OptimConfig
from minillm.training.deviation import WINDOW, z_score
from minillm.training.progress import Progress


def broken_at(parts, *steps, how="loss"):
    """Return an objective whose loss is not a number at some steps, or (how: empty) that has no targets there."""
    seeds = {17 * (step - 1) for step in steps}  # of the tiny loader's batches

    class Broken(parts.Objective):
        def prepare(self, batch):
            batch = super().prepare(batch)
            if how == "empty" and batch.seed in seeds:
                batch = replace(batch, targets=torch.full_like(batch.targets, -100))
            return batch

        def step(self, model, batch):
            loss = super().step(model, batch)
            return replace(loss, total=loss.total * float("nan")) if batch.seed in seeds and how == "loss" else loss

    return Broken()


def overflow_at(trainer, step):
    """Let one gradient of a step be infinite."""
    bias, state = trainer.model.up.bias, trainer.state
    bias.register_hook(lambda gradient: torch.full_like(gradient, float("inf")) if state.step == step - 1 else gradient)


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def rows(trainer):
    with trainer.folder.metrics_path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestSkip:
    """train.on_non_finite = "skip"."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16-with-scaler"])
    def test_a_skipped_step_is_one_that_had_no_targets(self, parts, make_trainer, dtype):
        """Weights, their means, optimiser and schedule; batches are a pure function of the step."""
        given = {"compute_dtype": dtype, "ema_decay": 0.7}
        skipped = make_trainer("a", objective=broken_at(parts, 6), on_non_finite="skip", **given)
        empty = make_trainer("b", objective=broken_at(parts, 6, how="empty"), **given)
        for trainer in (skipped, empty):
            trainer.fit()
        assert all(torch.equal(a, b) for a, b in zip(weights(skipped), weights(empty), strict=True))
        for file in ("model.safetensors", "optimiser.safetensors"):
            one, two = (trainer.folder.folder_of(12) / file for trainer in (skipped, empty))
            assert one.read_bytes() == two.read_bytes()
        assert (skipped.state.skipped_steps, skipped.state.skipped_in_a_row, skipped.state.empty_steps) == (1, 0, 0)
        assert [(row["loss"], row["grad_norm"]) for row in rows(skipped)][5] == ("", "")

    def test_a_gradient_counts_like_a_loss(self, make_trainer, capsys):
        trainer = make_trainer(on_non_finite="skip")
        overflow_at(trainer, 4)
        trainer.fit()
        assert trainer.state.skipped_steps == 1 and all(p.isfinite().all() for p in weights(trainer))

    @pytest.mark.parametrize("how", ["loss", "gradient"])
    def test_a_skipped_step_calls_no_hook(self, parts, make_trainer, how):
        """What hooks keep, such as running means of gradients, stays as it was too."""
        broken = broken_at(parts, *((4,) if how == "loss" else ()))
        trainer = make_trainer(objective=broken, on_non_finite="skip", max_steps=6)
        if how == "gradient":
            overflow_at(trainer, 4)
        seen, new = [], []
        trainer.after_backward.append(lambda t: seen.append(t.state.step + 1))
        trainer.after_step.append(lambda t: new.append(t.state.step))
        trainer.fit()
        assert trainer.state.skipped_steps == 1 and seen == new == [1, 2, 3, 5, 6]

    def test_the_line_names_step_and_places(self, parts, make_trainer, capsys):
        loader = parts.Loader()
        loader.where = lambda step: f"rows of step {step}"
        trainer = make_trainer(objective=broken_at(parts, 6), loader=loader, on_non_finite="skip")
        trainer.fit()
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            "minillm: the loss or the gradient is not a finite number at step 6 (rows of step 5); "
            "the step is skipped, 1 so far"
        )

    @pytest.mark.parametrize(
        "broken, bounds, stops",
        [
            pytest.param((5, 6, 7), {"max_skips_in_a_row": 2}, 7, id="in-a-row"),
            pytest.param((5, 6, 8, 9), {"max_skips_in_a_row": 2}, None, id="not-in-a-row"),
            pytest.param((5, 7, 9), {"max_skips": 2}, 9, id="in-all"),
            pytest.param((2,), {"max_skips": 0}, 2, id="none-allowed"),
        ],
    )
    def test_bounds(self, parts, make_trainer, broken, bounds, stops):
        trainer = make_trainer(objective=broken_at(parts, *broken), on_non_finite="skip", **bounds)
        if stops is None:
            assert trainer.fit().steps == 12
            return
        saved = (stops - 1) // 4 * 4
        safe = f"the checkpoint of step {saved} is safe" if saved else "no checkpoint was saved before"
        with pytest.raises(InputError, match=rf"not? .*finite number at step {stops}.*max_skips.*{safe}"):
            trainer.fit()
        assert all(p.isfinite().all() for p in weights(trainer))

    def test_counts_go_on_after_a_resume(self, parts, make_trainer):
        given = {"on_non_finite": "skip", "max_skips": 2}
        make_trainer(objective=broken_at(parts, 2, 4), max_steps=4, **given).fit()
        trainer = make_trainer(objective=broken_at(parts, 2, 4, 7), **given)
        trainer.resume()
        assert (trainer.state.skipped_steps, trainer.state.skipped_in_a_row) == (2, 1)
        with pytest.raises(InputError, match="at step 7.*3 steps of the run were"):
            trainer.fit()


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_stop_names_the_places_of_its_own_step(parts, make_trainer, log_every):
    """Also where the numbers were read several steps later."""
    loader = parts.Loader()
    loader.where = lambda step: f"rows of step {step}"
    trainer = make_trainer(objective=broken_at(parts, 6), loader=loader, log_every=log_every)
    with pytest.raises(InputError, match=r"the loss is no longer a finite number at step 6 \(rows of step 5\); lower"):
        trainer.fit()


class TestWhere:
    """What a loader says of a step is where its rows are."""

    def test_packed_windows(self):
        tokens = np.arange(1000, dtype=np.uint16)  # each token is its own place
        store = TokenStore(tokens=tokens, bounds=np.array([0, 400, 1000]), num_bytes=1000)
        loader = Loader(store, context=16, batch_size=3, shift=True, seed=4)
        for step in (0, 7, 90):
            begins = loader.batch(step).tokens[:, 0].tolist()
            said = loader.where(step)
            assert f"its rows begin at tokens {', '.join(map(str, begins))} of" in said
            assert said.startswith(f"epoch {3 * step // loader.num_windows}")

    def test_sequences_of_a_table(self):
        tokens = np.repeat(np.arange(9), 2)  # sequence n is n, n
        sequences = Sequences(tokens=tokens, bounds=np.arange(0, 19, 2), rows=np.arange(9))
        loader = SequenceLoader(sequences, batch_size=2, pad=0, seed=3)
        for step in (0, 5, 30):
            numbers = loader.batch(step).tokens[:, 0].tolist()
            assert f"sequences {numbers[0]}, {numbers[1]} of the training table" in loader.where(step)


class TestDeviations:
    """loss_z and grad_norm_z in metrics.csv."""

    @pytest.mark.parametrize("log_every", [1, 7])
    def test_they_are_those_of_the_steps_before(self, make_trainer, log_every):
        """Against NumPy, from a run that logged every step."""
        every = make_trainer("every", max_steps=40, eval_every=0, log_every=1)
        trainer = make_trainer("some", max_steps=40, eval_every=0, log_every=log_every)
        every.fit()
        trainer.fit()
        losses, norms = (np.array([float(row[name]) for row in rows(every)]) for name in ("loss", "grad_norm"))
        for row in rows(trainer):
            step = int(row["step"])
            for name, values in (("loss_z", losses), ("grad_norm_z", norms)):
                before, value = values[: step - 1], values[step - 1]
                if len(before) < 16:
                    assert row[name] == ""
                else:
                    z = (value - before.mean()) / before.std(ddof=1)
                    assert float(row[name]) == pytest.approx(z, rel=1e-5, abs=1e-6)

    def test_the_window_goes_on_after_a_resume(self, make_trainer):
        constant = OptimConfig(schedule="constant", warmup_steps=0)
        through = make_trainer("a", max_steps=32, optim=constant)
        through.fit()
        make_trainer("b", max_steps=20, optim=constant).fit()
        second = make_trainer("b", max_steps=32, optim=constant)
        second.resume()
        assert len(second.state.recent_losses) == 20
        second.fit()
        assert second.folder.metrics_path.read_bytes() == through.folder.metrics_path.read_bytes()
        assert rows(second)[20]["loss_z"]

    def test_old_steps_leave_the_window(self, make_trainer):
        trainer = make_trainer(max_steps=WINDOW + 9, eval_every=0, checkpoint_every=0)
        trainer.fit()
        losses = [float(row["loss"]) for row in rows(trainer)]
        assert trainer.state.recent_losses == pytest.approx(losses[9:])

    @pytest.mark.parametrize("value, before", [(1.0, [1.0] * 20), (1.0, [1.0, 2.0]), (float("inf"), [1.0, 2.0] * 20)])
    def test_where_there_is_none(self, value, before):
        assert z_score(value, before) is None


class TestDeterministic:
    """train.deterministic."""

    def test_it_holds_while_training_and_not_after(self, make_trainer):
        seen = []
        trainer = make_trainer(max_steps=2, deterministic=True)
        trainer.after_step.append(lambda t: seen.append(torch.are_deterministic_algorithms_enabled()))
        trainer.fit()
        assert seen == [True, True] and not torch.are_deterministic_algorithms_enabled()

    def test_an_op_without_such_an_algorithm_is_one_line(self, make_trainer):
        trainer = make_trainer(deterministic=True)
        trainer.after_step.append(lambda t: torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False))
        with pytest.raises(InputError, match="train.deterministic = true, and put_ does not have a deterministic impl"):
            trainer.fit()
        assert not torch.are_deterministic_algorithms_enabled()

    def test_other_errors_pass(self, make_trainer):
        trainer = make_trainer(deterministic=True)
        trainer.after_step.append(lambda t: torch.ones(2) @ torch.ones(3))
        with pytest.raises(RuntimeError, match="size"):
            trainer.fit()


def test_warnings_come_also_from_a_quiet_run(capsys):
    Progress(quiet=True).warn("mind this")
    assert capsys.readouterr().err == "minillm: mind this\n"
