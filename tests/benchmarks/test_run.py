"""A run of sections: each has its time, what is found is on the disk at once, and what ends a run loses nothing."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import child, launches, machine, plots, report, sections
from benchmarks.context import Section


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Results are those of this machine and commit: in device/2026-11-25-abc.json."""
    head = {"device": "device", "kind": "cpu", "date": "2026-11-25T00:00:00Z", "commit": "abc"}
    monkeypatch.setattr(machine, "header", lambda: head)


def test_a_section_that_fails_is_reported_and_the_next_ones_run(monkeypatch, tmp_path, capsys):
    def broken(context):
        yield {"rows": []}
        raise ValueError("no")

    def fine(context):
        yield {"reason": "nothing to do"}

    listed = (Section("recipes", broken, {"cpu": (9, 9)}), Section("compile", fine, {"cpu": (9, 9)}))
    monkeypatch.setattr(sections, "SECTIONS", listed)
    assert command.run(("recipes", "compile"), None, [], tmp_path, quick=False) == 1
    result = json.loads((tmp_path / "device/2026-11-25-abc.json").read_text())
    assert result["sections"]["recipes"]["defect"] == "ValueError: no"
    assert result["sections"]["compile"]["reason"] == "nothing to do"
    assert "ValueError: no" in (tmp_path / "device/2026-11-25-abc.md").read_text()
    capsys.readouterr()


def test_what_a_section_has_found_is_on_the_disk_while_it_goes_on(monkeypatch, tmp_path):
    """A machine may be taken away at any time."""
    seen = []

    def slow(context):
        yield {"reason": "half of it"}
        seen.append(json.loads((tmp_path / "device/2026-11-25-abc.json").read_text())["sections"]["compile"]["reason"])

    monkeypatch.setattr(sections, "SECTIONS", [Section("compile", slow, {"cpu": (9, 9)})])
    command.run(("compile",), None, [], tmp_path, quick=False)
    assert seen == ["half of it"]


def test_a_part_of_a_run_leaves_the_result_of_a_whole_one_alone(monkeypatch, tmp_path):
    section = Section("compile", lambda context: iter([{"reason": "nothing to do"}]), {"cpu": (9, 9)})
    monkeypatch.setattr(sections, "SECTIONS", (section,))
    for words in ([], ["--only", "compile"]):
        command.run(("compile",), None, [], tmp_path, quick=False, words=words)
    assert sorted(p.stem for p in tmp_path.glob("*/*.json")) == ["2026-11-25-abc", "2026-11-25-abc-part"]


def test_what_a_section_leaves_is_the_next_ones(monkeypatch, tmp_path):
    budgets = []

    def short(context):
        budgets.append(context.budget)
        yield {"reason": "nothing to do"}

    listed = tuple(Section(name, short, {"cpu": (9, 9)}) for name in ("ceilings", "ops", "compile"))
    monkeypatch.setattr(sections, "SECTIONS", listed)
    command.run(("ceilings", "compile"), None, [], tmp_path, quick=False)
    assert budgets[0] == 9 and 17 < budgets[1] < 18


@pytest.fixture
def heeded():
    """No signal is ignored, as they are in what nohup or a shell's background runs."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in child.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_keeps_what_was_measured_and_ends_what_measures(monkeypatch, tmp_path, capsys, number):
    """Ctrl-C, `kill` and a time limit's; left to Python, a SIGTERM's children would go on measuring."""
    ended = []

    def interrupted(context):
        try:
            yield {"reason": "half of it"}
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            ended.append("its processes")

    monkeypatch.setattr(sections, "SECTIONS", [Section("compile", interrupted, {"cpu": (9, 9)})])
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as ending:  # the page is there before seconds are spent on plots
        ending.setattr(report, "write_page_with_plots", lambda *a: None)
        assert command.run(("compile",), None, [], tmp_path, quick=False) == 128 + number
    assert ended == ["its processes"] and signal.getsignal(number) == before
    assert "Not run: half of it." in (tmp_path / "device/2026-11-25-abc.md").read_text()
    assert "stopped" in capsys.readouterr().err


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", child.SIGNALS, ids=lambda n: n.name)
def test_a_signal_amid_the_start_of_a_process_does_not_lose_it(monkeypatch, number):
    """Its number is not known yet when the signal comes."""
    started = []
    own = child.start

    def start(*a, **k):
        process = own(*a, **k)
        started.append(process)
        os.kill(os.getpid(), number)
        return process

    monkeypatch.setattr(child, "start", start)
    with pytest.raises(command.Stopped), command.stopping(), child.Child("benchmarks.worker", ["ceilings"]):
        pass
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_second_signal_does_not_keep_the_first_from_ending_what_measures(monkeypatch, tmp_path, again):
    """Ctrl-C twice, or what asks with several signals: the second one comes while children are ended."""
    ended = []

    def interrupted(context):
        try:
            yield {"reason": "half of it"}
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), again)
            ended.append("its processes")

    monkeypatch.setattr(sections, "SECTIONS", [Section("compile", interrupted, {"cpu": (9, 9)})])
    monkeypatch.setattr(report, "write_page_with_plots", lambda *a: None)
    assert command.run(("compile",), None, [], tmp_path, quick=False) == 128 + signal.SIGINT
    assert ended == ["its processes"]


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_plots_are_drawn_costs_plots_alone(monkeypatch, tmp_path, capsys, number):
    """The measuring is done, and someone does not care to wait for pictures."""

    def draw(*a):
        os.kill(os.getpid(), number)
        time.sleep(60)

    listed = [Section("compile", lambda context: iter([{"reason": "measured"}]), {"cpu": (9, 9)})]
    monkeypatch.setattr(sections, "SECTIONS", listed)
    monkeypatch.setattr(plots, "draw", draw)
    assert command.run(("compile",), None, [], tmp_path, quick=False) == 128 + number
    for name in ("json", "md"):
        assert "measured" in (tmp_path / f"device/2026-11-25-abc.{name}").read_text()
    said = capsys.readouterr()
    assert said.err.endswith("all is written but some of the plots\n") and said.out.endswith("2026-11-25-abc.md\n")


def test_a_signal_that_is_ignored_stays_so():
    """As nohup has it of SIGHUP: who started the run is to go away, and the run is not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with command.stopping():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("room", [True, False], ids=["room-again", "full-for-good"])
def test_a_full_disk_is_a_line_and_costs_no_section(monkeypatch, tmp_path, capsys, room):
    """What is on the disk stays whole; what was measured while it was full is written as soon as there is room."""
    full = [False]
    own = Path.write_text

    def write_text(self, text, **more):
        if full[0]:
            own(self, text[: len(text) // 2], **more)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(self, text, **more)

    def filling(context):
        yield {"reason": "before"}
        full[0] = True
        yield {"reason": "meanwhile"}
        full[0] = not room

    listed = (
        Section("recipes", filling, {"cpu": (9, 9)}),
        Section("compile", lambda context: iter([{"reason": "after"}]), {"cpu": (9, 9)}),
    )
    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(sections, "SECTIONS", listed)
    status = command.run(("recipes", "compile"), None, [], tmp_path, quick=False)
    found = json.loads((tmp_path / "device/2026-11-25-abc.json").read_text())["sections"]
    said = capsys.readouterr().err
    if room:
        assert (status, found["recipes"]["reason"], found["compile"]["reason"]) == (0, "meanwhile", "after")
    else:
        assert (status, found["recipes"]["reason"]) == (2, "before")
    told = "No space left on device; make room, or name another folder with --out"
    assert told in said and "Traceback" not in said
    assert not list(tmp_path.glob("*/*.part"))


def test_tune_is_the_launch_tables_alone_with_a_budget_of_its_own(monkeypatch, tmp_path, capsys):
    told = []

    def seen(context):
        told.append((context.budget, context.tune))
        yield {"reason": "seen"}

    listed = [Section(s.name, seen, s.budgets) for s in sections.SECTIONS]
    monkeypatch.setattr(sections, "SECTIONS", listed)
    assert command.main(["--tune", "--out", str(tmp_path)]) == 0
    assert told == [(launches.WIDE_BUDGET, True)]
    capsys.readouterr()
