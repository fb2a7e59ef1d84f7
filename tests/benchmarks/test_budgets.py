"""A run ends in the promised time whatever its children do: on a clock that only waiting moves."""

import subprocess

import pytest

from benchmarks import __main__ as command
from benchmarks import child, correctness, launches, machine, report, sections, warming
from benchmarks.training import section as training

PROMISED = {"cuda": 480, "cpu": 900}  # seconds
QUICK = 180
BETWEEN = 30  # seconds for what lies between the sections: header, plots, processes that take their last second


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Endless:
    """A process that never says a word and never ends, but when it is killed."""

    def __init__(self, clock):
        self.clock, self.killed, self.stdin, self.pid = clock, False, None, -1

    def poll(self):
        return -9 if self.killed else None

    def wait(self, timeout=None):
        if self.killed:
            return -9
        self.clock.sleep(timeout)
        raise subprocess.TimeoutExpired("pytest", timeout)


@pytest.fixture
def clock(monkeypatch):
    """Replace the time of everything that waits, and the processes it waits for."""
    made = Clock()
    for module in (child, sections, correctness, launches, training, command):
        monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(child, "start", lambda *a, **k: Endless(made))
    monkeypatch.setattr(child, "end", lambda process: setattr(process, "killed", True))
    monkeypatch.setattr(child.Child, "tell", lambda self, what: None)
    monkeypatch.setattr(warming, "warming", lambda context: warming.contextlib.nullcontext())
    monkeypatch.setattr(correctness, "warming", lambda context: warming.contextlib.nullcontext())
    monkeypatch.setattr(report, "write_page_with_plots", lambda *a: None)
    monkeypatch.setattr(training, "data_sheet", lambda kind: None)
    monkeypatch.setattr(correctness, "WORKERS", {"cuda": 1, "cpu": 1})  # two would both move the one clock
    for module in (child, training):
        monkeypatch.setattr(module, "PATIENCE", float("inf"))  # as if each spoke just often enough
    monkeypatch.setattr(sections, "PATIENCE", dict.fromkeys(PROMISED, float("inf")))
    return made


@pytest.mark.parametrize("kind, quick", [("cuda", False), ("cuda", True), ("cpu", False), ("cpu", True)])
def test_a_run_in_which_nothing_ever_ends_keeps_its_time(monkeypatch, tmp_path, clock, capsys, kind, quick):
    head = {"device": "device", "kind": kind, "date": "2026-11-25T00:00:00Z", "commit": "abc"}
    monkeypatch.setattr(machine, "header", lambda: head)
    monkeypatch.setattr(launches, "titles", lambda wide: ["a knob", "another"])
    began = clock.now
    assert command.run(command.SECTION_NAMES, None, [], tmp_path, quick=quick) == 0
    took = clock.now - began
    budget = sum(s.budget(kind, quick) or 0 for s in sections.SECTIONS)
    assert budget * 0.8 < took, "the clock did not move: the test sees nothing"
    assert took <= (QUICK if quick else PROMISED[kind]) - BETWEEN / (3 if quick else 1)
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_budgets_leave_room_for_what_lies_between_sections(kind):
    full, quick = (sum(s.budget(kind, q) or 0 for s in sections.SECTIONS) for q in (False, True))
    assert full < PROMISED[kind] - BETWEEN and quick <= QUICK - BETWEEN / 3
