"""The section of correctness: the kernels' own tests, on the device at hand, as many as its time allows.

With a GPU the kernels are compiled and bfloat16 is among the dtypes; all tests are begun, and the clock cuts what does
not fit. Without one Triton's interpreter runs them, which takes hours of a GPU's seconds: a fixed number of cases of
each test. Either way the page says how many of how many; the rest is `make test`'s.

Each process has a share of the tests of all files, in the order of `sampling.py`: so the clock cuts a little off every
file, and not all of those that would come last. A test that ends its process costs only itself.

Left out are the tests that need no device: those of the compile report, and those that plant faults into kernels to see
that other tests would find them.

Read next: `warming.py`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.context import Context, Part
from benchmarks.machine import ROOT
from benchmarks.warming import warming

NEEDS_NO_DEVICE = re.compile(r"test_(compile_report|\w+_faults|\w+_ladder|dispatch|checks|philox)\.py")
EACH = {"cuda": (0, 4), "cpu": (5, 1)}  # cases of each test, without --quick and with it; 0: all
WORKERS = {"cuda": 12, "cpu": 2}  # at most; a compiled kernel takes a core for a second, the interpreter for longer
PAUSE = 0.5  # seconds between two looks
MOST_NAMED = 20  # of the tests of one file that failed
# a warning of another PyTorch than the one that the tests were written with is no wrong result
OPTIONS = ["-q", "--tb=line", "-W", "default", "-p", "no:cacheprovider", "-p", "benchmarks.sampling"]


def correctness(context: Context) -> Iterator[Part]:
    """Run the tests, several processes beside each other."""
    paths = [p for p in sorted((ROOT / "tests/kernels").glob("test_*.py")) if not NEEDS_NO_DEVICE.fullmatch(p.name)]
    if context.ops is not None:
        paths = [p for p in paths if any(op.split("_")[0] in p.name for op in context.ops)]
    until, each = time.monotonic() + context.budget, EACH[context.kind][context.quick]
    found: dict[str, Part] = {}
    with warming(context):
        for found in run_tests(paths, until, each, min(WORKERS[context.kind], os.cpu_count() or 2)):
            yield {"files": found, "each": each}
    for name, part in found.items():
        told = f"{part['passed']} passed, {part['failed']} failed, of {part['tests']} in all"
        context.say(f"{name}: {told}{', ' * bool(part['reason'])}{part['reason']}")


def run_tests(paths: Sequence[Path], until: float, each: int, workers: int = 1) -> Iterator[dict[str, Part]]:
    """Run files of tests; yield what came of each, by its name, as it grows.

    Args:
        until: on the clock of time.monotonic; what was counted before the time was over stays.
        each: cases of every test function; 0: all.
    """
    nothing: Part = {"passed": 0, "failed": 0, "skipped": 0, "tests": 0, "asked": 0, "seconds": 0.0, "reason": ""}
    found = {path.name: {**nothing, "failures": []} for path in paths}
    shares: list[Share] = []
    with ExitStack() as stack:
        if paths and until - time.monotonic() >= 1:
            words = [*OPTIONS, "--continue-on-collection-errors", "--each", str(each), *map(str, paths)]
            shares = [Share([*words, "--share", f"{n + 1}/{workers}"], found, stack) for n in range(workers)]
        while time.monotonic() < until and not all(share.over for share in shares):
            time.sleep(PAUSE)
            if any([share.look() for share in shares]):  # a list: all of them look
                yield found
    reasons = [share.reason or "no time left in the budget" for share in shares if share.reason or not share.over]
    for part in found.values():
        done = part["passed"] + part["failed"] + part["skipped"]
        if not part["reason"] and (reasons or not shares) and (done < part["asked"] or not done):
            part["reason"] = f"{'stopped' if done else 'not run'}: {(reasons or ['no time left in the budget'])[0]}"
    yield found


class Share:
    """A process's share of the tests: begun anew behind a test that ended it, or that lost the GPU.

    over: whether there is no more to come. reason: why that is before the last of its tests; empty where it is not.
    """

    def __init__(self, words: Sequence[str], found: dict[str, Part], stack: ExitStack) -> None:
        """Start it, to be ended with `stack`; what comes of its tests is added to `found`."""
        self._words, self._found, self._stack = words, found, stack
        self._begun = self._begun_before = 0  # tests, by this process and by those before it
        self._running, self._finished = "", False
        self.over, self.reason = False, ""
        self._child = self._start()

    def _start(self) -> Child:
        words = [*self._words, "--after", str(self._begun)]
        return self._stack.enter_context(Child("pytest", words, threads=1))

    def look(self) -> bool:
        """Count what has come; return whether anything has."""
        lines = [] if self.over else self._child.come()
        if lines is None:
            self._ended()
            return True
        for line in lines:
            self._count(line)
        return bool(lines)

    def _count(self, line: dict[str, Any]) -> None:
        match line:
            case {"tests": tests, "asked": asked}:
                for name, part in self._found.items():
                    part["tests"], part["asked"] = tests.get(name, 0), asked.get(name, 0)
            case {"broken": name, "why": why} if name in self._found:  # and no folder of tests
                self._found[name]["reason"] = f"nothing ran: {why}"
            case {"begin": test}:
                self._running, self._begun = test, self._begun + 1
            case {"end": test, "outcome": outcome, "seconds": seconds}:
                self._running = ""
                part = self._found[test.partition("::")[0]]
                part[outcome] += 1
                part["seconds"] += seconds
                if outcome == "failed" and len(part["failures"]) < MOST_NAMED:
                    part["failures"].append(test)
            case {"finished": _}:
                self._finished = True

    def _ended(self) -> None:
        if self._running:
            self._count({"end": self._running, "outcome": "failed", "seconds": 0.0})
        if not self._finished and self._begun > self._begun_before:
            self._begun_before = self._begun
            self._child = self._start()
        else:
            self.over, self.reason = True, "" if self._finished else self._child.reason or "pytest ended early"
