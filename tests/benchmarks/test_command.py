"""The command, as a user starts it: what it writes, how it ends, and that a case that dies costs only itself."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import child, launches, machine, report, sections, worker
from benchmarks.context import Context, Section
from benchmarks.ops import BENCHMARKS

ROOT = Path(__file__).parents[2]
HEAD = {"device": "device", "kind": "cpu", "date": "2026-11-25T00:00:00Z", "commit": "abc"}


def start(*words, **more):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | more
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_quick_run_of_two_ops_writes_a_result_and_a_page(tmp_path):
    """The compilers are left out of a quick run: they would take most of the time."""
    words = ("--quick", "--only", "ops", "--ops", "relu,rms_norm", "--skip", "SDPA math", "--out", str(tmp_path))
    done = start(*words, PYTHONPATH="")  # from a checkout alone
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1])
    result = json.loads(page.with_suffix(".json").read_text())
    rows = result["sections"]["ops"]["rows"]
    assert {r["op"] for r in rows} == {"relu", "rms_norm"}
    assert {r["provider"] for r in rows} == {"fused", "torch", "reference", "F.relu", "F.rms_norm", "Liger", "copy"}
    assert "defect" not in result["sections"]["ops"]
    assert result["sections"]["ops"]["not_run"] == []
    assert result["header"]["commit"] and result["header"]["versions"]["torch"]
    assert "### relu" in page.read_text()
    assert "benchmarks --quick --only ops --ops relu,rms_norm --skip 'SDPA math'`" in page.read_text()
    assert list(page.parent.glob("*-speedup.png"))


@pytest.mark.skipif(shutil.which("make") is None, reason="without make")
@pytest.mark.parametrize("given, after", [("", ""), ("/peers", ":/peers")], ids=["nothing", "a folder of peers"])
def test_make_bench_adds_to_the_pythonpath_that_it_is_given(tmp_path, given, after):
    """So a peer that is not installed, such as unpacked wheels, is found."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -m ] && echo "$PYTHONPATH" "$@"\nexit 0\n')
    python.chmod(0o755)
    words = ["make", "--no-print-directory", "bench", f"PYTHON={python}", "READY=no/such/file", "BENCH=--quick"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ({"PYTHONPATH": given} if given else {})
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f".:kernels{after}", "-m", "benchmarks", "--quick"]


def test_nothing_but_torch_is_needed_to_list_the_sections_and_the_recipes():
    """What only a recipe's own process needs may be missing: its rows then say so."""
    missing = (
        "einops",
        "safetensors",
        "rich",
        "tyro",
        "tomli_w",
        "sentencepiece",
        "transformers",
        "matplotlib",
        "triton",
    )
    program = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    program += "from benchmarks import __main__, sections\nfrom benchmarks.training.recipes import recipes\n"
    program += "print(len(recipes()), len(sections.SECTIONS))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "7"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--only", "nothing"], "nothing"),
        (["--quick", "--only", "scaling"], "a quick run has no scaling; leave out --quick"),
        (["--ops", "relo"], "relu"),
        (["--ops", ""], "relu"),
        (["--skip", "turbo"], "torch.compile"),
        (["--compare", "no-such-file", "other"], "no-such-file"),
        (["--compare", "README.md", "README.md"], "README.md is not a result"),
        (["--out", "README.md"], "README.md"),
        (["--what"], "--what"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_input_is_one_line_and_status_2(capsys, monkeypatch, words, told):
    monkeypatch.chdir(ROOT)
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.count("\n") == 1 and told in said


def test_names_of_sections_are_those_there_are():
    assert tuple(s.name for s in sections.SECTIONS) == command.SECTION_NAMES


class Lines:
    """A child that writes what it is told: `script` has one list of lines for each time that one is started."""

    def __init__(self, script):
        self.script, self.words = script, []

    def __call__(self, module, words=(), **more):
        self.now = self.script.pop(0)
        self.words.append(words)
        self.more = more
        self.reason = "the process ended with status -11: it said nothing"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def lines(self, until):
        yield from self.now


def run_ops(monkeypatch, script, say=lambda text: None):
    """Return what the section finds, and the cases that each of its children was given."""
    child = Lines(script)
    monkeypatch.setattr(sections, "Child", child)
    context = Context("cpu", True, ["relu", "gelu", "relu2"], [], 60.0, say)
    found = list(sections.ops(context))[-1]
    return found, [json.loads(words[words.index("--cases") + 1]) for words in child.words]


RELU, GELU, RELU2 = (["relu", "tiny"], ["gelu", "tiny"], ["relu2", "tiny"])


def test_a_case_that_ends_its_process_is_blamed_and_the_rest_goes_on(monkeypatch):
    found, _ = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"done": RELU, "rows": [{"op": "relu"}]}, {"start": GELU}],  # and it ends
            [{"start": RELU2}, {"failed": RELU2, "reason": "ValueError: no"}],
        ],
    )
    assert found["rows"] == [{"op": "relu"}]
    reasons = {n["case"][0]: n["reason"] for n in found["not_run"]}
    assert "status -11" in reasons["gelu"] and reasons["relu2"] == "ValueError: no"


def test_a_provider_that_ends_its_process_is_left_out_and_its_case_begins_anew(monkeypatch):
    found, given = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"provider": "torch"}, {"provider": "fused"}],  # and it ends
            [{"start": RELU}, {"provider": "torch"}, {"done": RELU, "rows": [{"op": "relu"}]}]
            + [{"start": GELU}, {"done": GELU}, {"start": RELU2}, {"done": RELU2}],
        ],
    )
    assert found["rows"] == [{"op": "relu"}] and found["not_run"] == []
    assert [case[2] for case in given[0]] == [{}, {}, {}]
    left_out = {op: why for op, _, why in given[1]}
    assert {op: list(why) for op, why in left_out.items()} == {"relu": ["fused"], "gelu": [], "relu2": []}
    assert "status -11" in left_out["relu"]["fused"]


def test_the_most_telling_case_of_every_op_comes_first_and_every_case_once():
    """What a model's step spends most time in, before all others; then the second shapes in the same order."""
    cases = worker.cases("cuda", quick=False, ops=None)
    names = [op for op, _ in cases]
    assert names[:3] == ["attention_causal", "linear_cross_entropy", "layer_norm"]
    assert sorted(names[: len(BENCHMARKS)]) == sorted(BENCHMARKS) and names[len(BENCHMARKS)] == names[0]
    assert sorted(cases) == sorted((b.name, s.name) for b in BENCHMARKS.values() for s in b.shapes["cuda"])


def test_a_provider_that_falls_silent_costs_less_than_half_of_the_ops(monkeypatch):
    (budget,) = (s.budget("cuda", False) for s in sections.SECTIONS if s.name == "ops")
    assert sections.PATIENCE["cuda"] < budget / 2
    child = Lines([[]])
    monkeypatch.setattr(sections, "Child", child)
    list(sections.ops(Context("cpu", True, ["relu"], [], 60.0, lambda text: None)))
    assert child.more["patience"] == sections.PATIENCE["cpu"]


def test_a_case_that_dies_again_and_again_is_given_up(monkeypatch):
    dying = [[{"start": RELU}, {"provider": name}] for name in ("fused", "torch", "reference", "F.relu")]
    found, _ = run_ops(monkeypatch, [*dying, [{"start": GELU}, {"done": GELU}, {"start": RELU2}, {"done": RELU2}]])
    assert [n["case"] for n in found["not_run"]] == [RELU]


def test_a_process_that_cannot_begin_is_not_started_for_ever(monkeypatch):
    found, _ = run_ops(monkeypatch, [[]])
    assert {n["case"][0] for n in found["not_run"]} == {"relu", "gelu", "relu2"}


def test_cases_are_visited_again_and_their_spread_covers_all_visits(monkeypatch):
    """Without who was not timed, and without compilers; a visit that is cut short keeps what it found, and says so."""
    key = {"op": "relu", "shape": "tiny", "dtype": "fp32", "direction": "forward"}
    torch = {**key, "provider": "torch"}
    absent = {**key, "provider": "fused", "status": "not run", "reason": "needs a GPU"}
    first = {**torch, "status": "measured", "seconds": 2.0, "low": 1.9, "high": 2.1}
    said: list[str] = []
    found, given = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"done": RELU, "rows": [first, absent]}]
            + [{"start": GELU}, {"failed": GELU, "reason": ""}, {"start": RELU2}, {"failed": RELU2, "reason": ""}],
            [{"start": RELU}, {"done": RELU, "rows": [{**torch, "seconds": 3.0, "low": 2.9, "high": 3.2}]}],
            [{"start": RELU}, {"provider": "torch"}],  # and it ends
        ],
        said.append,
    )
    measured, other = found["rows"]
    assert [measured[n] for n in ("seconds", "low", "high", "visits")] == [2.5, 1.9, 3.2, [2.0, 3.0]]
    assert other == absent
    assert given[1] == given[2] == [[*RELU, {"fused": "needs a GPU"}]]
    assert "status -11" in said[-1]


def test_times_are_taken_again_by_another_process(monkeypatch):
    monkeypatch.setattr(sections, "VISITS", {"cpu": 2})
    context = Context("cpu", True, ["relu"], ["reference"], 60.0, lambda text: None)
    *_, found = sections.ops(context)
    visits = {(r["provider"], r["direction"]): len(r.get("visits", ())) for r in found["rows"] if "seconds" in r}
    assert visits and set(visits.values()) == {2}, visits


def test_what_does_not_fit_is_not_run():
    context = Context("cpu", True, ["relu"], [], 0.0, lambda text: None)
    (found,) = sections.ops(context)  # and nothing is visited again
    assert found["not_run"] == [{"case": ["relu", "tiny"], "reason": "no time left in the budget"}]


def test_a_section_that_fails_is_reported_and_the_next_ones_run(monkeypatch, tmp_path, capsys):
    def broken(context):
        yield {"rows": []}
        raise ValueError("no")

    def fine(context):
        yield {"reason": "nothing to do"}

    listed = (Section("recipes", broken, {"cpu": (9, 9)}), Section("compile", fine, {"cpu": (9, 9)}))
    monkeypatch.setattr(sections, "SECTIONS", listed)
    monkeypatch.setattr(machine, "header", lambda: HEAD)
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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
    command.run(("compile",), None, [], tmp_path, quick=False)
    assert seen == ["half of it"]


def test_a_part_of_a_run_leaves_the_result_of_a_whole_one_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "header", lambda: HEAD)
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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
    monkeypatch.setattr(report, "write_page_with_plots", lambda *a: None)
    assert command.run(("compile",), None, [], tmp_path, quick=False) == 128 + signal.SIGINT
    assert ended == ["its processes"]


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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
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
    monkeypatch.setattr(machine, "header", lambda: HEAD)
    assert command.main(["--tune", "--out", str(tmp_path)]) == 0
    assert told == [(launches.WIDE_BUDGET, True)]
    capsys.readouterr()


def test_launch_tables_are_a_gpus_and_a_cpu_says_so():
    (found,) = launches.launches(Context("cpu", False, None, [], 1.0, lambda text: None))
    assert "a GPU's kernels" in found["reason"]
