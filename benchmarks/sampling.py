"""A plugin of pytest: the tests in an order whose beginning is a sample of all of them, and as many as are asked for.

    python -m pytest -p benchmarks.sampling --each 2 tests/kernels/test_gelu.py

Of each test function the cases come in an order in which every value of every parameter (a dtype, a shape, an option, a
backend) is met as early and as evenly as can be; then the first case of every function, the second of every function,
and so on. So whatever cuts the list, a number or a clock, leaves a little of everything, and the same on every machine.
`--share 2/3` takes the second of three processes' part of that list, `--after 5` what comes behind its first five, and
`--to FILE` takes a JSON line for all that happens: what a process did before it died is known.

Read next: `correctness.py`, which runs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Parameters = Mapping[str, str]  # of a case: parameter -> which of its values
RECORD = "benchmarks.sampling.Record"  # name of the plugin that writes what happens


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--each", type=int, default=0, help="cases of each test function; 0: all of them")
    parser.addoption("--share", default="1/1", help="which part of how many: tests are dealt out one by one")
    parser.addoption("--after", type=int, default=0, help="leave out so many at the beginning of the share")
    parser.addoption("--to", type=Path, help="file to which lines are appended")


def pytest_configure(config: Any) -> None:
    if config.getoption("--to"):
        config.pluginmanager.register(Record(config.getoption("--to")), RECORD)


class Record:
    """Writes a line for what there is, what cannot be imported, each test that begins and ends, and the regular end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._outcome, self._seconds = "passed", 0.0

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            text = str(report.longrepr).strip().splitlines() or ["?"]
            self.write({"broken": file_of(report.nodeid), "why": text[-1].removeprefix("E   ").strip()[:160]})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._outcome, self._seconds = "passed", 0.0
        self.write({"begin": short(nodeid)})

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds += report.duration
        if report.outcome != "passed" and self._outcome != "failed":
            self._outcome = report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.write({"end": short(nodeid), "outcome": self._outcome, "seconds": self._seconds})
        if self._outcome == "failed" and is_lost():
            os._exit(1)  # the tests that follow would fail too, and the device may keep the process from ending

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus in (0, 1, 5):  # all passed, some failed, there were none
            self.write({"finished": int(exitstatus)})


def is_lost() -> bool:
    """Return whether a GPU is lost to this process, as after a wrong address."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def file_of(nodeid: str) -> str:
    """Return the name of a test's file."""
    return nodeid.partition("::")[0].rpartition("/")[2]


def short(nodeid: str) -> str:
    """Return a test's name without its folders."""
    return "::".join((file_of(nodeid), nodeid.partition("::")[2]))


@pytest.hookimpl(trylast=True)  # after -m has left out its own
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Order the collected tests, keep the first `--each` of every function, and of those this process's share."""
    functions: dict[str, list[Any]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    of_file: Counter[str] = Counter()
    ranked = []
    for name, cases in functions.items():
        order = spread_out([parameters_of(case) for case in cases])
        ranked += [(rank, of_file[file_of(name)], cases[place]) for rank, place in enumerate(order)]
        of_file[file_of(name)] += 1
    ranked.sort(key=lambda entry: entry[:2])  # the first function of every file, the second of every file
    each = config.getoption("--each") or len(items)
    first, step = (int(number) for number in config.getoption("--share").split("/"))
    asked = [item for rank, _, item in ranked if rank < each]
    if record := config.pluginmanager.get_plugin(RECORD):
        record.write(
            {name: Counter(file_of(i.nodeid) for i in of) for name, of in (("tests", items), ("asked", asked))}
        )
    kept = asked[first - 1 :: step][config.getoption("--after") :]
    chosen = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = kept


def parameters_of(item: Any) -> Parameters:
    """Return which value each parameter of a test has, by its place among the values."""
    call = getattr(item, "callspec", None)
    return {} if call is None else {name: str(index) for name, index in call.indices.items()}


def spread_out(cases: Sequence[Parameters]) -> list[int]:
    """Return the places of cases in an order that takes next what is made of the values that were met least.

    >>> spread_out([{"dtype": d, "shape": s} for d in "ab" for s in "xy"])
    [0, 3, 1, 2]
    """
    met: Counter[tuple[str, str]] = Counter()
    left = dict(enumerate(cases))
    order: list[int] = []
    while left:
        place = min(left, key=lambda p: (sum(met[value] for value in left[p].items()), p))
        met.update(left.pop(place).items())
        order.append(place)
    return order
