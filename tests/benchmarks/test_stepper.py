"""The process of one contender: what it times is the trainer's own step, and a profile is of one."""

import contextlib
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from small_recipes import CPU, OURS, PEER, small

from benchmarks.training import stepper
from benchmarks.training.build import make_trainer, task_of
from minillm.training.trainer import Trainer


def made(contender=OURS, name="shakespeare-char-small", **more) -> stepper.Stepper:
    return stepper.Stepper(make_trainer(small(name), contender, CPU), CPU, **more)


def orders(*given):
    return [json.dumps(order) for order in given]


@pytest.mark.parametrize("contender", [OURS, PEER], ids=lambda c: c.name)
def test_stepper_builds_warms_up_and_takes_its_turns(contender):
    lines = []
    about = task_of(small("shakespeare-char-small"), contender)
    stepper.obey(
        lambda: made(contender, count_work=True), orders({"warm": True}, {"seconds": 0.02}), lines.append, about
    )
    built, warm, turn = (next(iter(line.values())) for line in lines)
    assert built["parameters"] == built["parameters_of_ours"] and built["dtype"] == "fp32"
    assert warm["loss"] == pytest.approx(math.log(37), rel=0.05) and warm["norm"] > 0
    assert warm["work"]["flops"] > 0.5 * built["flops"] and warm["work"]["bytes"] > 0
    assert turn["seconds"] > 0 and turn["steps"] >= 1


def test_a_profile_says_what_a_step_goes_to():
    """On a CPU by op: a planted product is in it, as often as it is called, and no other step's."""
    timed = made()
    timed.warm_up()
    a = torch.randn(300, 300)
    timed.trainer.after_step.append(lambda trainer: [torch.linalg.matrix_exp(a) for _ in range(3)])
    lines = []
    stepper.obey(lambda: timed, orders({"profile": True}), lines.append, {})
    kernels = lines[-1]["profile"]["kernels"]
    assert {name: calls for name, calls, _ in kernels}["aten::linalg_matrix_exp"] == 3
    seconds = [taken for *_, taken in kernels]
    assert seconds == sorted(seconds, reverse=True) and min(seconds) >= 0


def test_on_a_gpu_a_profile_is_of_one_of_several_steps_and_says_how_long_nothing_ran(monkeypatch):
    """The profiler's part is played: two kernels a step, the second a millisecond after the first."""
    span = lambda start, stop: SimpleNamespace(start=start, end=stop, elapsed_us=lambda: stop - start)  # noqa: E731
    steps = stepper.PROFILED_STEPS["cuda"]
    events = [
        SimpleNamespace(name=name, device_type="DeviceType.CUDA", time_range=span(8000 * step + at, 8000 * step + end))
        for step in range(steps)
        for name, at, end in (("first", 0, 2000), ("second", 3000, 8000), ("Optimizer.step#AdamW.step", 0, 8000))
    ]
    played = contextlib.nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda **given: played)
    timed, taken = made(), []
    timed.device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(timed, "_steps", taken.append)
    monkeypatch.setattr(timed, "_give_back", lambda: None)
    told = timed.profile()
    assert taken == [1, steps]
    assert [[name, calls] for name, calls, _ in told["kernels"]] == [["second", 1], ["first", 1]]
    assert [seconds for *_, seconds in told["kernels"]] == pytest.approx([5e-3, 2e-3])
    assert told["idle"] == pytest.approx(1e-3)


def test_on_a_gpu_memory_is_that_of_a_step_and_a_turn_begins_with_a_step_that_is_not_timed(monkeypatch):
    """Compiling may take more memory than a step; the first step of a turn takes memory again."""
    peak, taken = [0], []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0])
    timed = made()
    timed.device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(timed, "_give_back", lambda: None)
    step = timed.trainer.take_step

    def take_step():
        peak[0] = max(peak[0], 300 if taken else 900)
        taken.append(1)
        return step()

    monkeypatch.setattr(timed.trainer, "take_step", take_step)
    assert timed.warm_up()["peak_bytes"] == 300
    monkeypatch.setattr(timed, "_steps", lambda number: (taken.append(number), (0.5 / len(taken), 3.6))[1])
    taken.clear()
    timed.seconds = 0.1
    turn = timed.turn(0.35)
    assert taken == [1, 4] and turn == {"seconds": 0.25, "steps": 4, "loss": 3.6}


@pytest.mark.parametrize(
    "name, is_span",
    [
        ("Optimizer.step#AdamW.step", True),
        ("## Call CompiledFxGraph f55433 ##", True),
        ("void at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const", False),
    ],
)
def test_a_profile_leaves_out_spans_and_no_kernel(name, is_span):
    assert bool(stepper.SPAN.match(name)) is is_span


def test_what_is_timed_is_the_trainers_own_step(monkeypatch):
    taken = []
    own = Trainer.take_step
    monkeypatch.setattr(Trainer, "take_step", lambda self: (taken.append(self.state.step), own(self))[1])
    timed = made()
    timed.warm_up()
    steps = timed.turn(0.01)["steps"]
    assert taken == list(range(stepper.WARM_STEPS + steps))
    weights = [p.detach().clone() for p in timed.trainer.parameters]
    timed.turn(0.001)
    assert not all(torch.equal(a, b) for a, b in zip(weights, timed.trainer.parameters, strict=True))


def test_planted_sleep_is_in_the_time_of_a_step(monkeypatch):
    """By a clock that only the planted sleep moves: a step lasts as long as that, not a third of it, not thrice."""
    now = [0.0]
    timed = made()
    timed.warm_up()
    monkeypatch.setattr(stepper, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    timed.trainer.after_step.append(lambda trainer: now.__setitem__(0, now[0] + 0.03))
    timed.seconds = 0.03  # of the step before: three of them fill the turn
    turn = timed.turn(0.09)
    assert turn["steps"] == 3 and turn["seconds"] == pytest.approx(0.03)


def test_a_loss_that_counts_other_targets_is_a_failure():
    timed = made()
    step = timed.trainer.objective.step

    def miscounting(model, batch):
        loss = step(model, batch)
        return dataclasses.replace(loss, count=loss.count + 1)

    timed.trainer.objective.step = miscounting
    lines = []
    stepper.obey(lambda: timed, orders({"warm": True}), lines.append, {})
    assert "counts +2 targets beside those of the batch" in lines[-1]["failed"]  # in two micro-batches
