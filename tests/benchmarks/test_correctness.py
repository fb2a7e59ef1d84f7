"""The section of correctness: what pytest says is counted, and what is left out of the sample is said."""

import time

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


@pytest.fixture
def tests(tmp_path):
    path = tmp_path / "test_small.py"
    path.write_text(TESTS)
    return path


def test_a_file_of_tests_is_run_and_counted(tests):
    found = correctness.run_tests(tests, time.monotonic() + 60, each=0)
    assert [found[n] for n in ("passed", "failed", "skipped", "tests")] == [6, 1, 4, 11]
    assert found["failures"] == ["test_small.py::test_wrong"] and found["reason"] == ""


def test_a_sample_is_counted_beside_all_there_are(tests):
    found = correctness.run_tests(tests, time.monotonic() + 60, each=3)
    assert [found[n] for n in ("passed", "failed", "skipped", "tests")] == [3, 1, 3, 11]


def test_shares_are_all_tests_once(tests):
    one, two = (correctness.run_tests(tests, time.monotonic() + 60, 0, f"{n}/2") for n in (1, 2))
    assert 0 < one["passed"] < 6
    both = correctness.together(one, two)
    assert [both[n] for n in ("passed", "failed", "skipped", "tests")] == [6, 1, 4, 11]


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
    import subprocess
    import sys

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
