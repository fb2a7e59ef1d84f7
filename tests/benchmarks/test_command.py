"""The command, as a user starts it: what it writes, how it ends, and that a case that dies costs only itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import sections

ROOT = Path(__file__).parents[2]


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
    """The compiler's provider is left out: it would take most of the time."""
    words = ("--quick", "--only", "ops", "--ops", "relu,rms_norm", "--skip", "torch.compile", "--out", str(tmp_path))
    done = start(*words, PYTHONPATH="")  # from a checkout alone
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1])
    result = json.loads(page.with_suffix(".json").read_text())
    rows = result["sections"]["ops"]["rows"]
    assert {r["op"] for r in rows} == {"relu", "rms_norm"}
    assert {r["provider"] for r in rows} == {"fused", "torch", "reference", "F.relu", "F.rms_norm", "Liger"}
    assert result["sections"]["ops"]["not_run"] == []
    assert result["header"]["commit"] and result["header"]["versions"]["torch"]
    assert "### relu" in page.read_text()
    assert list(page.parent.glob("*-speedup.png"))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--only", "nothing"], "nothing"),
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


def test_budgets_keep_the_promised_time():
    """Eight minutes on a GPU and fifteen on a CPU, with half a minute for starting processes."""
    for kind, quick, most in (("cuda", False, 450), ("cpu", False, 870), ("cuda", True, 170), ("cpu", True, 170)):
        assert sum(s.budget(kind, quick) or 0 for s in sections.SECTIONS) <= most


class Lines:
    """A worker that writes what it is told: `script` has one list of lines for each time that one is started."""

    def __init__(self, script):
        self.script = script

    def __call__(self, what, context, cases):
        self.now = self.script.pop(0)
        self.reason = "the process ended with status -11: it said nothing"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def lines(self, end):
        yield from self.now


def run_ops(monkeypatch, script):
    monkeypatch.setattr(sections, "Worker", Lines(script))
    context = sections.Context("cpu", True, ["relu", "gelu", "relu2"], [], 60.0, lambda text: None)
    return list(sections.ops(context))[-1]


def test_a_case_that_ends_its_process_is_blamed_and_the_rest_goes_on(monkeypatch):
    relu, gelu, relu2 = (["relu", "tiny"], ["gelu", "tiny"], ["relu2", "tiny"])
    found = run_ops(
        monkeypatch,
        [
            [{"start": relu}, {"done": relu, "rows": [{"op": "relu"}]}, {"start": gelu}],  # and it ends
            [{"start": relu2}, {"failed": relu2, "reason": "ValueError: no"}],
        ],
    )
    assert found["rows"] == [{"op": "relu"}]
    reasons = {n["case"][0]: n["reason"] for n in found["not_run"]}
    assert "status -11" in reasons["gelu"] and reasons["relu2"] == "ValueError: no"


def test_a_process_that_cannot_begin_is_not_started_for_ever(monkeypatch):
    found = run_ops(monkeypatch, [[]])
    assert [n["case"][0] for n in found["not_run"]] == ["relu", "gelu", "relu2"]


def test_what_does_not_fit_is_not_run():
    context = sections.Context("cpu", True, ["relu"], [], 0.0, lambda text: None)
    (found,) = sections.ops(context)
    assert found["not_run"] == [{"case": ["relu", "tiny"], "reason": "no time left in the budget"}]


def test_correctness_counts_what_pytest_says():
    context = sections.Context("cpu", True, ["relu2"], [], 0.0, lambda text: None)
    found = list(sections.correctness(context))[-1]["files"]
    assert all(part["reason"].startswith("not run") for part in found.values())


def test_a_file_of_tests_is_run_and_counted(tmp_path, monkeypatch):
    import time

    path = tmp_path / "test_small.py"
    path.write_text("def test_right():\n    pass\n\ndef test_wrong():\n    assert 0\n")
    monkeypatch.setattr(sections, "ROOT", tmp_path)
    found = sections._run_tests(path, time.monotonic() + 60)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 0)
    assert found["failures"] == ["test_small.py::test_wrong"]
