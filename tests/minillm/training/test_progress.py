"""The live line: plain lines where nobody watches, a bar in a terminal, nothing when it is quiet."""

import io
import time

import pytest

from minillm.training.progress import PLAIN_EVERY, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_plain_lines_come_every_few_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.start(0, 1000)
    for step in range(1, 1001):
        clock.now += PLAIN_EVERY / 320
        if step == 200:
            progress.values(loss=2.0, valid_loss=2.125, tokens_per_second=12345.6)
        progress.step(step)
    progress.stop()
    assert stream.getvalue().splitlines() == [
        "step 320/1,000  loss 2.000  valid 2.125  12,346 tokens/s  0:11 left",
        "step 640/1,000  loss 2.000  valid 2.125  12,346 tokens/s  0:06 left",
        "step 960/1,000  loss 2.000  valid 2.125  12,346 tokens/s  0:01 left",
        "step 1,000/1,000  loss 2.000  valid 2.125  12,346 tokens/s  0:00 left",
    ]


def test_time_left_of_a_resumed_run_counts_only_its_own_steps(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.start(900, 1000)
    clock.now = 10.0
    progress.step(950)
    assert stream.getvalue() == "step 950/1,000  0:10 left\n"


def test_a_terminal_gets_a_bar_that_goes_away_and_notes_that_stay(clock):
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.start(0, 10)
    progress.note("[a note] stays as it is")
    clock.now = 1.0
    progress.values(loss=None, valid_loss=None, tokens_per_second=5.0)
    progress.step(5)
    progress.stop()
    progress.stop()
    assert "[a note] stays as it is" in stream.getvalue() and "5/10" in stream.getvalue()


def test_quiet_says_nothing(clock, capsys):
    progress = Progress(quiet=True)
    progress.start(0, 1)
    progress.note("a note")
    clock.now = 100.0
    progress.step(1)
    progress.stop()
    assert capsys.readouterr() == ("", "")
