"""Checkpoints written by a thread: the bits of their moment, one at a time, errors at the next step."""

import threading
import time

import pytest
import torch

from minillm.checkpoint.native import read_tensors
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training import saving
from minillm.training.progress import Progress
from minillm.training.saving import Saver, copies


def test_a_checkpoint_has_the_bits_of_its_step_however_late_it_is_written(make_trainer, monkeypatch):
    """The thread waits while training takes all further steps until the next checkpoint."""
    kept, real = {}, RunFolder.save
    released = {4: threading.Event(), 8: threading.Event(), 12: threading.Event()}
    trainer = make_trainer(ema_decay=0.9, keep_checkpoints=9)

    def late(self, step, *words, **options):
        assert released[step].wait(60)
        return real(self, step, *words, **options)

    def remember(trainer):
        kept[trainer.state.step] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        if (event := {7: 4, 11: 8, 12: 12}.get(trainer.state.step)) is not None:
            released[event].set()

    monkeypatch.setattr(RunFolder, "save", late)
    trainer.after_step.append(remember)
    trainer.fit()
    for step in (4, 8, 12):
        found = read_tensors(trainer.folder.folder_of(step) / "unaveraged.safetensors")
        assert all(torch.equal(found[name], kept[step][name]) for name in found) and found


def test_copies_share_no_memory():
    tensor = torch.ones(3)
    (copy,) = copies({"a": tensor}).values()
    tensor += 1
    assert copy.tolist() == [1, 1, 1]


@pytest.mark.parametrize("device, waits", [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_a_copy_that_is_waited_for_may_come_later(monkeypatch, device, waits):
    """CUDA's copies are waited for together; those of another device have to be there at once."""
    asked = []

    class Elsewhere:
        def __init__(self):
            self.device = torch.device(device)

        def detach(self):
            return self

        def to(self, place, **options):
            asked.append((place, options["non_blocking"]))

    monkeypatch.setattr(saving, "whole", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("waited"))
    copies({"a": Elsewhere(), "b": Elsewhere()})
    assert asked == ([("cpu", False)] * 2 if waits else [("cpu", True)] * 2 + ["waited"])


def test_one_write_at_a_time_in_order():
    order, running, most = [], [0], [0]

    def write(number):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        order.append(number)
        running[0] -= 1

    with Saver(on_failure=lambda error: None) as saver:
        for number in range(4):
            saver.begin(number, lambda number=number: write(number))
        assert saver.wait() == 3
    assert order == [0, 1, 2, 3] and most == [1]


def failing(error):
    def write():
        raise error

    return write


def test_what_failed_is_told_once_and_the_next_write_is_tried():
    told = []
    with Saver(told.append) as saver:
        saver.begin(1, failing(InputError("full")))
        saver.wait()
        assert told == [] and saver.saved_step == -1
        saver.check()
        saver.check()
        assert [str(error) for error in told] == ["full"]
        saver.begin(2, lambda: None)
        saver.finish()
    assert saver.saved_step == 2 and len(told) == 1


@pytest.mark.parametrize("error", [ValueError("defect"), KeyboardInterrupt()], ids=["defect", "ctrl-c"])
def test_a_defect_is_no_full_disk(error):
    with Saver(lambda error: pytest.fail("not to be told")) as saver:
        saver.begin(1, failing(error))
        saver.wait()
        with pytest.raises(type(error)):
            saver.check()


def test_the_last_write_raises_and_another_error_goes_before_it():
    with pytest.raises(InputError, match="full"), Saver(lambda error: None) as saver:
        saver.begin(1, failing(InputError("full")))
        saver.finish()
    with pytest.raises(KeyError), Saver(lambda error: None) as saver:
        saver.begin(1, failing(InputError("full")))
        raise KeyError


@pytest.mark.parametrize("rule, steps", [("go_on", 12), ("stop", 5)])
def test_a_refused_checkpoint_amid_the_run(make_trainer, monkeypatch, capsys, rule, steps):
    """go_on: one line of warning, in a quiet run too, and the run ends well. stop: at the next step."""
    real, amid_step_5 = RunFolder.save, threading.Event()

    def refused(self, step, *words, **options):
        if step == 4:
            amid_step_5.wait(timeout=60)
            raise InputError("cannot write checkpoints/step-000004: full")
        return real(self, step, *words, **options)

    def await_the_write(trainer):
        if trainer.state.step == 5:
            amid_step_5.set()
            trainer.saver.wait()

    monkeypatch.setattr(RunFolder, "save", refused)
    trainer = make_trainer(on_failed_write=rule, progress=Progress(quiet=True))
    trainer.after_step.append(await_the_write)
    if rule == "stop":
        with pytest.raises(InputError, match="step-000004: full"):
            trainer.fit()
        assert trainer.state.step == steps
        return
    assert trainer.fit().steps == steps and trainer.folder.load().step == 12
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minillm: cannot write checkpoints/step-000004: full; training goes on")


def test_keep_last_best_and_every(make_trainer):
    """Losses 5, 1, 4, 2, 6, 3 at steps 2, 4, ... 12: the best two are 4 and 8; 6 and 12 are divided by 6."""
    losses = iter([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    trainer = make_trainer(
        evaluate=lambda model: {"loss": next(losses)},
        eval_every=2,
        checkpoint_every=2,
        keep_checkpoints=2,
        keep_best=2,
        keep_every=6,
    )
    trainer.fit()
    assert trainer.folder.steps() == [4, 6, 8, 10, 12] and trainer.folder.load("best").step == 4


def test_only_what_was_judged_is_among_the_best(make_trainer):
    """Judged are steps 4, 8 and 12, each worse than the one before; how good 3, 6 and 9 are, nobody knows."""
    losses = iter([1.0, 2.0, 3.0])
    trainer = make_trainer(evaluate=lambda model: {"loss": next(losses)}, eval_every=4, checkpoint_every=3, keep_best=2)
    trainer.fit()
    assert trainer.folder.load("best").step == 4 and trainer.folder.steps() == [4, 12]


@pytest.mark.parametrize(
    "losses, best", [((5, 1, 3), 12), ((1, 5, 3), 4), ((5, 1, 6), 4)], ids=["last", "first", "old"]
)
def test_the_best_of_those_that_the_disk_took_is_marked(make_trainer, monkeypatch, losses, best):
    """Judged are steps 4, 8 and 12, and the checkpoint of step 8 cannot be written."""
    real, judged = RunFolder.save, iter(losses)

    def refused(self, step, *words, **options):
        if step == 8:
            raise InputError("cannot write checkpoints/step-000008: full")
        return real(self, step, *words, **options)

    monkeypatch.setattr(RunFolder, "save", refused)
    trainer = make_trainer(evaluate=lambda model: {"loss": float(next(judged))})
    trainer.fit()
    assert trainer.folder.load("best").step == best and trainer.folder.steps() == sorted({best, 12})
