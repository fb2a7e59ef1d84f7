"""The section of correctness: what comes of the tests is counted, and what is left out of the sample is said."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import correctness
from benchmarks.context import Context
from benchmarks.sampling import spread_out

TESTS = """
import pytest

@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [1, 2])
def test_right(shape, dtype):
    pass

def test_wrong():
    assert 0

@pytest.mark.parametrize("shape", range(4))
def test_skipped(shape):
    pytest.skip("no")
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Look often: the tests here take less time than lies between two looks of a real run."""
    monkeypatch.setattr(correctness, "PAUSE", 0.05)


@pytest.fixture
def tests(tmp_path):
    return written(tmp_path, "small", TESTS)


def written(folder, name, text):
    path = folder / f"test_{name}.py"
    path.write_text(text)
    return path


def run(*paths, each=0, workers=1, seconds=60.0):
    """Return what came of files of tests, by name."""
    *_, found = correctness.run_tests(paths, time.monotonic() + seconds, each, workers)
    return found


def counts(part):
    return [part[name] for name in ("passed", "failed", "skipped", "tests")]


def test_a_file_of_tests_is_run_and_counted(tests):
    found = run(tests)["test_small.py"]
    assert counts(found) == [6, 1, 4, 11]
    assert found["failures"] == ["test_small.py::test_wrong"] and found["reason"] == ""


def test_a_sample_is_counted_beside_all_there_are(tests):
    found = run(tests, each=3)["test_small.py"]
    assert counts(found) == [3, 1, 3, 11] and found["reason"] == ""


def test_shares_of_several_processes_are_all_tests_of_all_files_once(tmp_path, tests):
    other = written(tmp_path, "other", "def test_a():\n    pass\n\n\ndef test_b():\n    pass\n")
    found = run(tests, other, workers=3)
    assert {name: counts(part) for name, part in found.items()} == {
        "test_small.py": [6, 1, 4, 11],
        "test_other.py": [2, 0, 0, 2],
    }


def test_a_clock_that_cuts_leaves_something_of_every_file(tmp_path, monkeypatch):
    """The first file alone would take all the time there is; the clock stands still until the others are done."""
    now = [0.0]
    monkeypatch.setattr(correctness, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    slow = "import time\nimport pytest\n\n\n@pytest.mark.parametrize('n', range(100))\ndef test_slow(n):\n"
    slow = written(tmp_path, "a_slow", f"{slow}    time.sleep(2)\n")
    rest = [written(tmp_path, name, "def test_quick():\n    pass\n") for name in ("b", "c", "d")]
    found = {}
    for found in correctness.run_tests([slow, *rest], 60.0, each=0):
        if all(found[path.name]["passed"] for path in rest):
            now[0] = 61.0
    assert 0 < found["test_a_slow.py"]["passed"] < 100
    assert found["test_a_slow.py"]["reason"] == "stopped: no time left in the budget"
    assert [(found[path.name]["passed"], found[path.name]["reason"]) for path in rest] == 3 * [(1, "")]


@pytest.mark.parametrize(
    "fault, failed",
    [
        pytest.param("import os\n    os._exit(7)", ["test_bad.py::test_2"], id="process-ends"),
        pytest.param("torch.cuda.lost = True\n    assert 0", ["test_bad.py::test_2"], id="device-is-lost"),
    ],
)
def test_a_test_that_ends_its_process_costs_only_itself(tmp_path, fault, failed):
    """After a wrong address all that follows in that process would fail."""
    head = "import torch\n\ntorch.cuda.is_available = lambda: True\n\n\ndef synchronize():\n"
    head += "    if getattr(torch.cuda, 'lost', False):\n        raise RuntimeError('CUDA error')\n\n\n"
    head += "torch.cuda.synchronize = synchronize\n"
    bodies = ["synchronize()", "synchronize()", fault, "synchronize()", "synchronize()"]
    text = "".join(f"\n\ndef test_{n}():\n    {body}\n" for n, body in enumerate(bodies))
    found = run(written(tmp_path, "bad", head + text))["test_bad.py"]
    assert counts(found) == [4, 1, 0, 5] and found["failures"] == failed and found["reason"] == ""


def test_a_file_that_cannot_be_imported_says_why_and_the_others_run(tmp_path, tests):
    broken = written(tmp_path, "broken", "import no_such_package\n")
    found = run(broken, tests)
    assert "No module named 'no_such_package'" in found["test_broken.py"]["reason"]
    assert counts(found["test_small.py"]) == [6, 1, 4, 11]


def test_what_grows_is_told_before_the_end(tmp_path):
    """A run may be stopped at any time."""
    slow = written(tmp_path, "slow", "import time\n\n\ndef test_a():\n    pass\n\n\ndef test_b():\n    time.sleep(2)\n")
    told = [found["test_slow.py"]["passed"] for found in correctness.run_tests([slow], time.monotonic() + 60, 0)]
    assert 1 in told and told[-1] == 2


def test_tests_that_cannot_begin_say_why(tests, monkeypatch):
    monkeypatch.setattr(correctness, "OPTIONS", ["-p", "benchmarks.sampling", "--no-such-option"])
    assert "status 4" in run(tests)["test_small.py"]["reason"]


def test_without_time_nothing_is_run_and_said_to_be():
    context = Context("cpu", True, ["relu2"], [], 0.0, lambda text: None)
    found = list(correctness.correctness(context))[-1]["files"]
    assert found and all(part["reason"].startswith("not run") for part in found.values())


def test_a_sample_meets_every_value_of_every_parameter():
    cases = [{"dtype": d, "shape": s, "backend": b} for d in "abc" for s in "vwxyz" for b in "pq"]
    order = spread_out(cases)
    assert sorted(order) == list(range(len(cases)))  # all of them, once
    first = [cases[place] for place in order[:5]]
    for name, values in (("dtype", "abc"), ("shape", "vwxyz"), ("backend", "pq")):
        assert {case[name] for case in first} == set(values)
    assert spread_out(cases) == order


def test_the_same_cases_are_taken_whatever_the_machine(tests):
    """The order is of the tests alone: two runs of one sample have the same verdicts in the same order."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "benchmarks.sampling",
        "--each",
        "2",
        "-p",
        "no:cacheprovider",
    ]
    runs = [
        subprocess.run([*command, str(tests)], cwd=correctness.ROOT, capture_output=True, text=True, check=False).stdout
        for _ in range(2)
    ]
    names = [[x.split()[0].partition("::")[2] for x in out.splitlines() if "test_small.py::" in x] for out in runs]
    assert names[0] == names[1] and len(names[0]) >= 5
    assert names[0][:3] == ["test_right[1-f32]", "test_wrong", "test_skipped[0]"]
