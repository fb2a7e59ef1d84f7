"""The section of correctness: the kernels' own tests, on the device at hand, as many as its time allows.

With a GPU the kernels are compiled and bfloat16 is among the dtypes; all tests are begun, and the clock cuts what does
not fit. Without one Triton's interpreter runs them, which takes hours of a GPU's seconds: a fixed number of cases of
each test. Either way the page says how many of how many; the rest is `make test`'s.

Left out are the tests that need no device: those of the compile report, and those that plant faults into kernels to see
that other tests would find them.

Read next: `warming.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import child
from benchmarks.context import Context, Part
from benchmarks.machine import ROOT
from benchmarks.warming import warming

WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")  # what pytest -v says of each test
NEEDS_NO_DEVICE = re.compile(r"test_(compile_report|\w+_faults|\w+_ladder|dispatch|checks|philox)\.py")
EACH = {"cuda": (0, 4), "cpu": (5, 1)}  # cases of each test, without --quick and with it; 0: all
WORKERS = {"cuda": 12, "cpu": 2}  # at most; a compiled kernel takes a core for a second, the interpreter for longer
BYTES_A_PROCESS = 8000  # of a file's text, on a GPU: what is longer is dealt out to several processes


def correctness(context: Context) -> Iterator[Part]:
    """Run the tests, a process a file; on a GPU several for a large file."""
    names = [p for p in (ROOT / "tests/kernels").glob("test_*.py") if not NEEDS_NO_DEVICE.fullmatch(p.name)]
    if context.ops is not None:
        names = [p for p in names if any(op.split("_")[0] in p.name for op in context.ops)]
    # With many workers the largest decide when the last one ends; with two, in an interpreter, the others should end.
    names.sort(key=lambda path: path.stat().st_size, reverse=context.kind == "cuda")
    until = time.monotonic() + context.budget
    each = EACH[context.kind][context.quick]
    found: dict[str, Part] = {}
    running: list[subprocess.Popen[bytes]] = []
    with warming(context), contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max(1, min(WORKERS[context.kind], os.cpu_count() or 2))))
        stack.callback(stop, pool, running)  # before the pool waits for its threads: Ctrl-C must not
        futures = {}
        for path in names:
            shares = -(-path.stat().st_size // BYTES_A_PROCESS) if context.kind == "cuda" else 1
            for share in range(1, shares + 1):
                futures[pool.submit(run_tests, path, until, each, f"{share}/{shares}", running)] = path.name
        for future in as_completed(futures):
            name, part = futures[future], future.result()
            told = f"{part['passed']} passed, {part['failed']} failed, of {part['tests']} in all"
            context.say(f"{name}: {told}{', ' * bool(part['reason'])}{part['reason']}")
            found[name] = together(found[name], part) if name in found else part
            yield {"files": dict(sorted(found.items())), "each": each}


def stop(pool: ThreadPoolExecutor, running: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, and begin nothing more."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        child.end(process)


def together(one: Part, other: Part) -> Part:
    """Return what two processes found in one file."""
    return {
        **{name: one[name] + other[name] for name in ("passed", "failed", "skipped", "failures")},
        "tests": max(one["tests"], other["tests"]),
        "seconds": max(one.get("seconds", 0.0), other.get("seconds", 0.0)),
        "reason": one["reason"] or other["reason"],
    }


def run_tests(
    path: Path, until: float, each: int, share: str = "1/1", running: list[subprocess.Popen[bytes]] | None = None
) -> Part:
    """Run one file of tests and count; what was counted before the time was over stays.

    Args:
        until: on the clock of time.monotonic.
        each: cases of every test function; 0: all.
        share: "2/3" for the second of three processes.
        running: takes the process, for who has to end it early.
    """
    part: Part = {"passed": 0, "failed": 0, "skipped": 0, "tests": 0, "failures": [], "reason": ""}
    left = until - time.monotonic()
    if left < 1:
        return part | {"reason": "not run: no time left in the budget"}
    start = time.monotonic()
    # a warning of another PyTorch than the one that the tests were written with is no wrong result
    options = ["-v", "--tb=line", "-W", "default", "-p", "no:cacheprovider", "-p", "benchmarks.sampling"]
    command = [sys.executable, "-m", "pytest", *options, "--each", str(each), "--share", share, str(path)]
    reason = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        tests = child.start(command, threads=1, stdin=subprocess.DEVNULL, stdout=output)
        if running is not None:
            running.append(tests)
        try:
            status = tests.wait(timeout=left)
            if status not in (0, 1, 5):
                reason = f"pytest ended with status {status}"
        except subprocess.TimeoutExpired:
            reason = "stopped: no time left in the budget"
        finally:
            child.end(tests)
        output.seek(0)
        lines = output.read().splitlines()
    part |= counted(lines)
    part["seconds"] = time.monotonic() - start
    nothing = "" if part["passed"] or part["failed"] else "nothing ran: " + (lines[-1:] or ["?"])[0][:160]
    return part | {"reason": reason or nothing}


def counted(lines: Sequence[str]) -> Part:
    """Return what `pytest -v` says of its tests: how many there are, and what came of those that were run."""
    verdicts = {word: [x for x in lines if f" {word}" in x and "::" in x] for word in WORDS}
    failed = [x for x in verdicts["FAILED"] + verdicts["ERROR"] if not x.startswith(("FAILED", "ERROR"))]
    collected = [int(m[1]) for x in lines if (m := re.search(r"collected (\d+) items?", x))]
    return {
        "passed": len(verdicts["PASSED"]),
        "failed": len(failed),
        "skipped": len(verdicts["SKIPPED"]),
        "tests": max(collected, default=0),
        "failures": [x.split(" FAILED")[0].split(" ERROR")[0].rpartition("/")[2] for x in failed][:20],
    }
