"""The MFU formula, the rates it stands on, and no invented peak for a CPU."""

import time

import pytest
import torch

from minillm.training import throughput
from minillm.training.records import read_columns
from minillm.training.throughput import Stopwatch, Yardstick, measured_product_rate, yardstick

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set on."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_a_cpu_is_measured_and_says_so():
    stick = yardstick(CPU, torch.float32)
    assert stick.name == f"{stick.flops_per_second / 1e9:,.0f} GFLOP/s, the measured product rate (float32)"
    assert 1e8 < stick.flops_per_second < 1e14


def test_measured_rate_is_twice_n_cubed_over_the_best_time(monkeypatch):
    """With a clock on which each product takes 0.25 s but the second, which takes 0.125 s."""
    readings = iter([0.0, 0.0, 0.25, 0.25, 0.375, 0.375])  # start; before and after each, and whether to go on
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    assert measured_product_rate(CPU, torch.float32) == 2 * 1024**3 / 0.125


def test_measuring_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    measured_product_rate(CPU, torch.float32)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "name, dtype, rate",
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA A100-SXM4-40GB", torch.float16, 312e12),
        ("NVIDIA A100-SXM4-40GB", torch.float32, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16, None),
        ("NVIDIA L40", torch.bfloat16, None),
    ],
)
def test_a_gpu_on_the_list_has_its_data_sheets_rate_and_others_are_measured(monkeypatch, name, dtype, rate):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(throughput, "measured_product_rate", lambda device, dtype: 7e12)
    stick = yardstick(torch.device("cuda"), dtype)
    assert stick.flops_per_second == (rate or 7e12)
    assert ("data sheet" in stick.name, "measured" in stick.name) == (rate is not None, rate is None)


def test_stopwatch_leaves_pauses_out(clock):
    watch = Stopwatch()
    clock.now += 2
    watch.tokens = 100
    assert watch.lap() == 50.0
    with watch.paused():
        clock.now += 10
    clock.now += 4
    watch.tokens = 180
    assert (watch.seconds, watch.training_seconds, watch.tokens_per_second) == (16.0, 6.0, 30.0)
    assert watch.lap() == 20.0


@pytest.mark.parametrize("processes", [1, 4])
def test_mfu_is_rate_times_flops_over_the_yardsticks(make_trainer, monkeypatch, processes):
    """The rate is of all processes, and each has a device of its own; here one of them takes all micro-batches."""
    monkeypatch.setattr("minillm.training.trainer.yardstick", lambda *_: Yardstick(1e9, "a rate"))
    trainer = make_trainer(flops_per_token=5e3)
    monkeypatch.setattr(trainer.processes, "size", processes)
    monkeypatch.setattr(trainer.processes, "own", lambda parts: parts)
    trainer.fit()
    rows = read_columns(trainer.folder.timing_path)
    for rate, mfu in zip(rows["tokens_per_second"], rows["mfu"], strict=True):
        assert mfu == pytest.approx(rate * 5e3 / (1e9 * processes), rel=1e-3, abs=1e-5)  # 5 decimals in the file


def test_without_flops_there_is_no_mfu_and_no_measurement(make_trainer, monkeypatch):
    monkeypatch.setattr("minillm.training.trainer.yardstick", lambda *_: pytest.fail("measured for nothing"))
    trainer = make_trainer()
    trainer.fit()
    assert set(read_columns(trainer.folder.timing_path)["mfu"]) == {None}


def test_evaluation_and_saving_do_not_count_as_training(make_trainer, clock, parts):
    def slow(model):
        clock.now += 50
        return {"loss": 1.0}

    trainer = make_trainer(evaluate=slow)
    trainer.after_step.append(lambda t: setattr(clock, "now", clock.now + 2))
    summary = trainer.fit()
    assert summary.seconds == 12 * 2 + 3 * 50
    assert summary.tokens_per_second == pytest.approx(summary.tokens / 24)
