"""Timing: the samples are those of a call, candidates take turns, and what raises is reported."""

import time

import pytest
import torch

from benchmarks.timing import Times, TooSlow, copies_for, interleaved

CPU = torch.device("cpu")


def test_median_and_quartiles_are_those_of_the_samples():
    times = Times((5.0, 1.0, 2.0, 4.0, 3.0), "clock")
    assert times.median == 3
    assert times.quartiles == (2, 4)
    assert Times((1.0,), "clock").quartiles == (1, 1)


@pytest.mark.parametrize("rounds", [7, 15, 31])
def test_repeating_moves_the_median_by_less_than_the_spread_that_is_printed(rounds):
    """With noise of one kind throughout, as on an idle machine, in 19 of 20 pairs of runs; here 400 pairs are drawn.

    Times have a floor and a tail, as those of computers do: lognormal noise on top of a fixed time.
    """
    generator = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(400):
        noise = torch.empty(2, rounds).log_normal_(0.0, 1.0, generator=generator)
        once, again = (Times(tuple((1.0 + 0.02 * n).tolist()), "clock") for n in noise)
        spread = max((t.quartiles[1] - t.quartiles[0]) / t.median for t in (once, again))
        kept += abs(again.median / once.median - 1) <= spread
    assert kept >= 380


def test_a_sleep_is_measured_as_long_as_it_is():
    found = interleaved({"sleep": lambda i: time.sleep(0.01)}, copies=2, device=CPU, rounds=5, seconds=5)
    times = found["sleep"]
    assert isinstance(times, Times) and len(times.samples) == 5
    assert 0.01 <= times.median < 0.1


def test_candidates_take_turns_and_go_through_the_copies():
    seen = []

    def call(name):
        def run(i):
            seen.append((name, i))
            time.sleep(0.006)  # longer than a sample has to be: one call each

        return run

    interleaved({"a": call("a"), "b": call("b")}, copies=3, device=CPU, rounds=4, seconds=9)
    rounds = [name for name, _ in seen[-8:]]
    assert rounds == list("abbaabba")
    assert {i for _, i in seen} == {0, 1, 2}


def test_one_slow_call_at_the_start_does_not_decide_how_many_a_sample_has():
    """2 ms a call, but for the second of all: samples of 5 ms have three calls."""
    calls = []

    def run(i):
        calls.append(i)
        time.sleep(0.02 if len(calls) == 2 else 0.002)

    interleaved({"sleep": run}, copies=1, device=CPU, rounds=4, seconds=9)
    assert len(calls) >= 4 + 4 * 2  # four before the rounds, and two at least in each


def test_rounds_end_with_the_time_but_not_before_three():
    found = interleaved({"sleep": lambda i: time.sleep(0.01)}, copies=1, device=CPU, rounds=1000, seconds=0.0)
    times = found["sleep"]
    assert isinstance(times, Times) and len(times.samples) == 3


def test_what_raises_is_its_own_result_and_no_others():
    def broken(i):
        raise ValueError("no")

    found = interleaved({"broken": broken, "fine": lambda i: None}, copies=1, device=CPU, rounds=3, seconds=1)
    assert isinstance(found["broken"], ValueError)
    assert isinstance(found["fine"], Times)


def test_too_slow_a_candidate_is_not_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.LONGEST_CALL", 0.001)
    found = interleaved({"slow": lambda i: time.sleep(0.01)}, copies=1, device=CPU, rounds=3, seconds=1)
    assert isinstance(found["slow"], TooSlow)


def test_copies_pass_the_cache(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.cache_bytes", lambda device: 1000)
    gpu = torch.device("cuda")
    assert [copies_for(size, gpu) for size in (10_000, 1000, 1001, 1)] == [1, 3, 3, 128]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are a GPU's")
def test_a_call_that_waits_is_timed_by_events_and_the_result_says_so():
    x = torch.randn(1000, device="cuda")
    calls = {"plain": lambda i: x * 2, "waits": lambda i: (x * 2).sum().item()}
    found = interleaved(calls, copies=4, device=x.device, rounds=5, seconds=5)
    assert found["plain"].method == "graph" and not found["plain"].note
    assert found["waits"].method == "events" and "not captured" in found["waits"].note
