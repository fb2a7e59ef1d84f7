"""A run that stopped and was resumed is, bit for bit, the run that never stopped."""

import csv
import dataclasses
import random
import shutil

import numpy as np
import pytest
import torch
from killed import Killed, gone_on, train_until_killed

from minillm.checkpoint import files
from minillm.checkpoint.manifest import renew_manifest
from minillm.checkpoint.native import read_tensors
from minillm.errors import InputError
from minillm.training.config import OptimConfig
from minillm.training.random_state import seed_random

FILES = ("model.safetensors", "optimiser.safetensors", "state.json", "config.json")  # random.safetensors: see below
SGD, ADAMW = (
    OptimConfig(name="sgd", learning_rate=0.05, warmup_steps=2),
    OptimConfig(learning_rate=0.02, warmup_steps=2),
)


def final_bytes(trainer) -> list[bytes]:
    """Return all that a run leaves but its clock readings."""
    return [
        trainer.folder.metrics_path.read_bytes(),
        *((trainer.folder.folder_of(12) / file).read_bytes() for file in FILES),
        (trainer.folder.checkpoints / "best").read_bytes(),
        (trainer.folder.checkpoints / "latest").read_bytes(),
    ]


@pytest.mark.parametrize("optim", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("killed, resumed", [(5, 4), (7, 4), (9, 8), (12, 8)])
@pytest.mark.parametrize("log_every", [1, 3])
def test_resumed_equals_never_stopped(make_trainer, optim, killed, resumed, log_every):
    through, first = (make_trainer(n, optim=optim, log_every=log_every, micro_batch_size=2) for n in ("a", "b"))
    through.fit()
    train_until_killed(first, killed)
    second = gone_on(make_trainer("b", optim=optim, log_every=log_every, micro_batch_size=2), resumed)
    assert second.loader.asked == list(range(resumed, 12))
    assert final_bytes(second) == final_bytes(through)


@pytest.mark.parametrize("killed, resumed", [(5, 4), (12, 8)])
def test_means_of_the_weights_resume_too(make_trainer, killed, resumed):
    """Means and the weights themselves; the best checkpoint is chosen by the means."""
    through, first = (make_trainer(n, ema_decay=0.7, micro_batch_size=2) for n in ("a", "b"))
    through.fit()
    train_until_killed(first, killed)
    second = gone_on(make_trainer("b", ema_decay=0.7, micro_batch_size=2), resumed)
    assert final_bytes(second) == final_bytes(through)
    one, two = (run.folder.folder_of(12) / "unaveraged.safetensors" for run in (second, through))
    assert one.read_bytes() == two.read_bytes()


def test_resuming_at_every_step_in_turn(make_trainer):
    through = make_trainer("a", checkpoint_every=1)
    through.fit()
    for step in range(1, 12):
        trainer = make_trainer("b", checkpoint_every=1)
        assert step == 1 or trainer.resume() == step - 1
        train_until_killed(trainer, step + 1)
    trainer = make_trainer("b", checkpoint_every=1)
    trainer.resume()
    trainer.fit()
    assert final_bytes(trainer) == final_bytes(through)


@pytest.mark.parametrize("marker", ["latest", "best"])
def test_killed_between_the_markers_of_the_best_checkpoint(make_trainer, monkeypatch, marker):
    """The run that goes on names the same one as best, though its later ones are worse."""
    losses = {4: 5.0, 8: 1.0, 12: 3.0}

    def make(name):
        trainer = make_trainer(name, evaluate=lambda _: {"loss": losses[trainer.state.step]})
        return trainer

    unbroken, killed = make("unbroken"), make("killed")
    unbroken.fit()
    real = files.write_text

    def write(path, text, **options):
        if path.name == marker and "000008" in text:
            raise Killed
        real(path, text, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "write_text", write)
        killed.fit()
    resumed = make("killed")
    resumed.resume()
    resumed.fit()
    assert resumed.folder.load("best").step == unbroken.folder.load("best").step == 8
    assert final_bytes(resumed) == final_bytes(unbroken)


def test_half_a_row_and_rows_after_the_checkpoint_go(make_trainer):
    through, first = make_trainer("a"), make_trainer("b")
    through.fit()
    train_until_killed(first, 7)
    with first.folder.metrics_path.open("a") as file:
        file.write("7,1")
    assert final_bytes(gone_on(make_trainer("b"), 4)) == final_bytes(through)


def test_seconds_go_on_where_they_stopped(make_trainer):
    first = make_trainer(max_steps=4)
    first.fit()
    text = first.folder.timing_path.read_text().splitlines()
    text[-1] = "4,1000.0,5.0,"
    first.folder.timing_path.write_text("\n".join(text) + "\n")
    second = make_trainer()
    second.resume()
    second.fit()
    seconds = [float(line.split(",")[1]) for line in second.folder.timing_path.read_text().splitlines()[1:]]
    assert seconds[3] == 1000.0 and 1000.0 <= seconds[4] <= seconds[-1] < 1100.0


def test_a_finished_run_goes_on_when_it_gets_more_steps(make_trainer):
    constant = OptimConfig(schedule="constant", warmup_steps=0)
    through, short = make_trainer("a", optim=constant), make_trainer("b", optim=constant, max_steps=8)
    through.fit()
    short.fit()
    assert final_bytes(gone_on(make_trainer("b", optim=constant), 8)) == final_bytes(through)


def test_going_back_to_an_earlier_checkpoint_drops_the_course_that_was_left(make_trainer):
    through, first = make_trainer("a"), make_trainer("b", keep_checkpoints=3)
    through.fit()
    first.fit()
    assert first.folder.steps() == [4, 8, 12]
    back = make_trainer("b", max_steps=6)
    assert back.resume(4) == 4
    back.fit()
    assert back.folder.load().step == 6 and back.folder.steps()[-1] == 6
    on = make_trainer("b")
    on.resume()
    assert on.state.step == 6
    again = make_trainer("a")
    assert again.resume("best") == again.folder.load("best").step


def test_resume_restores_what_the_summary_says(make_trainer):
    first = make_trainer(max_steps=4)
    told = first.fit()
    second = make_trainer(max_steps=4)
    second.resume()
    summary = second.fit()
    assert (summary.train_loss, summary.valid_loss, summary.tokens) == (told.train_loss, told.valid_loss, told.tokens)


def test_a_model_of_another_architecture_is_refused_by_its_settings(parts, make_trainer):
    make_trainer(max_steps=1).fit()
    other = make_trainer(config=parts.Config(dropout=0.5))  # all shapes are the same
    before = [p.clone() for p in other.model.parameters()]
    with pytest.raises(
        InputError, match=r"another architecture: model.dropout is 0.25 in it, 0.5 was asked for"
    ) as error:
        other.resume()
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))


def test_another_optimiser_is_refused(make_trainer):
    make_trainer(max_steps=1).fit()
    with pytest.raises(InputError, match="saved with adamw, optim.name is sgd; resume with the optimiser"):
        make_trainer(optim=SGD).resume()


@pytest.mark.parametrize("file", [*FILES, "unaveraged.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing"])
def test_a_damaged_checkpoint_is_one_clear_line(make_trainer, file, damage):
    trainer = make_trainer(max_steps=1, ema_decay=0.9)
    trainer.fit()
    path = trainer.folder.folder_of(1) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "noise": b"\xff" + content[1:]}[damage])
    with pytest.raises(InputError) as error:
        make_trainer(max_steps=1, ema_decay=0.9).resume()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "checkpoint" in str(error.value)


@pytest.mark.parametrize(
    "change", [{"step": "3"}, {"tokens": None}, {"train_loss": "low"}], ids=["text", "none", "loss"]
)
def test_a_counter_that_is_no_number_is_one_clear_line(make_trainer, change):
    import json

    trainer = make_trainer(max_steps=1)
    trainer.fit()
    path = trainer.folder.folder_of(1) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    renew_manifest(path.parent)
    with pytest.raises(InputError, match=f"state.json is damaged: {next(iter(change))} is "):
        make_trainer(max_steps=1).resume()


def test_a_folder_without_checkpoints_says_so(make_trainer):
    with pytest.raises(InputError, match="has no checkpoint yet"):
        make_trainer().resume()


def test_checkpoint_holds_each_tensor_once_in_float32(make_trainer):
    trainer = make_trainer(max_steps=1, compute_dtype=torch.bfloat16)
    trainer.fit()
    tensors = read_tensors(trainer.folder.folder_of(1) / "model.safetensors")
    assert set(tensors) == {"embedding.weight", "norm.weight", "norm.bias", "up.weight", "up.bias", "scale"}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_run_folder_may_be_moved(make_trainer, tmp_path):
    through, first = make_trainer("a"), make_trainer("b", max_steps=12)
    through.fit()
    train_until_killed(first, 6)
    shutil.move(tmp_path / "b", tmp_path / "elsewhere")
    assert final_bytes(gone_on(make_trainer("elsewhere"), 4)) == final_bytes(through)


@pytest.mark.parametrize("part", [1, 2], ids=["first-micro-batch", "second-micro-batch"])
def test_killed_inside_an_accumulation_window(parts, make_trainer, part):
    """The gradient of half a batch is lost with the process; the resumed run takes the whole step again."""

    class Dies(parts.Objective):
        steps = 0

        def step(self, model, batch):
            self.steps += model.training
            if self.steps == 2 * 6 + part:  # of the seventh step
                raise Killed
            return super().step(model, batch)

    through, first = make_trainer("a", micro_batch_size=2), make_trainer("b", micro_batch_size=2, objective=Dies())
    through.fit()
    with pytest.raises(Killed):
        first.fit()
    assert final_bytes(gone_on(make_trainer("b", micro_batch_size=2), 4)) == final_bytes(through)


def test_killed_inside_an_evaluation(make_trainer):
    """Of step 8, whose checkpoint would come after it; metrics.csv gets that row once."""
    through = make_trainer("a", ema_decay=0.7)
    through.fit()
    asked = []

    def dies(model):
        asked.append(model)
        if len(asked) == 2:
            raise Killed
        return through.judge.evaluate(model)

    first = make_trainer("b", ema_decay=0.7, evaluate=dies)
    with pytest.raises(Killed):
        first.fit()
    assert final_bytes(gone_on(make_trainer("b", ema_decay=0.7), 4)) == final_bytes(through)


class DrawsFromEverywhere:
    """An objective of somebody's own, whose loss is weighed by draws from all the global generators."""

    def __init__(self, objective):
        self.objective = objective

    def prepare(self, batch):
        return self.objective.prepare(batch)

    def step(self, model, batch):
        loss = self.objective.step(model, batch)
        draws = random.random() + random.gauss() + np.random.rand() + np.random.randn() + torch.rand(()).item()
        return dataclasses.replace(loss, total=loss.total * (1 + abs(draws)))


@pytest.mark.parametrize("killed, resumed", [(5, 4), (11, 8)])
def test_global_generators_go_on_where_they_were(parts, make_trainer, killed, resumed):
    """Python's, NumPy's and PyTorch's; an evaluation that draws from all of them moves none."""

    def careless(model):
        random.random(), np.random.rand(), torch.rand(2)
        return {"loss": 1.0}

    def make(name, **given):
        seed_random(3)
        objective = DrawsFromEverywhere(parts.Objective())
        return make_trainer(name, objective=objective, evaluate=careless, **given)

    through = make("a", eval_every=0)
    through.fit()
    first = make("b", eval_every=2)
    train_until_killed(first, killed)
    second = make("b", eval_every=3)
    seed_random(99)
    gone_on(second, resumed)
    for file in ("model.safetensors", "optimiser.safetensors", "random.safetensors"):
        one, two = (run.folder.folder_of(12) / file for run in (second, through))
        assert one.read_bytes() == two.read_bytes(), file


def rows_of(trainer):
    """Return the rows of metrics.csv by step, without what an evaluation adds, and the number of them."""
    with trainer.folder.metrics_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("step"): {k: v for k, v in row.items() if k != "valid_loss"} for row in rows}, len(rows)


@pytest.mark.parametrize("log_every, eval_every, checkpoint_every", [(1, 3, 5), (5, 0, 3), (3, 1, 0), (2, 2, 2)])
def test_other_intervals_after_the_resume_change_nothing_that_is_learnt(
    make_trainer, log_every, eval_every, checkpoint_every
):
    """Weights to the bit; every row that both runs have is the same, and no step has two."""
    through, first = make_trainer("a"), make_trainer("b", log_every=3)
    through.fit()
    train_until_killed(first, 7)
    second = gone_on(
        make_trainer("b", log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every), 4
    )
    for file in ("model.safetensors", "optimiser.safetensors"):
        one, two = (run.folder.folder_of(12) / file for run in (second, through))
        assert one.read_bytes() == two.read_bytes(), file
    (every, _), (some, count) = rows_of(through), rows_of(second)
    assert len(some) == count and some.keys() <= every.keys() and all(some[step] == every[step] for step in some)
    due = {step for step in range(5, 13) if step % log_every == 0 or (eval_every and step % eval_every == 0)}
    assert {int(step) for step in some} == {1, 3, 4} | due | {12}


def test_the_scaler_of_float16_goes_on_with_its_scale(make_trainer):
    """It doubles after every two sound steps, so it is another one at every checkpoint."""
    through, first = (make_trainer(n, compute_dtype=torch.float16, log_every=4) for n in ("a", "b"))
    for trainer in (through, first):
        trainer.scaler.set_growth_interval(2)
        trainer.scaler._init_scale = 2.0**10
    through.fit()
    train_until_killed(first, 11)
    second = gone_on(make_trainer("b", compute_dtype=torch.float16, log_every=4), 8)
    assert second.scaler.get_scale() != 2.0**10
    assert final_bytes(second) == final_bytes(through)
