"""What a run consists of: sections in order, each with a time budget, each adding its part to the result.

A section gets the context of the run and yields as it goes; after each yield the result is written, so that a run that
is stopped has lost nothing. What does not fit into its budget is listed as not run. Another section is another entry of
`SECTIONS`, and another part of the page in `report.py`.

Read next: `report.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, smi

Part = dict[str, Any]
WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")  # what pytest -v says of each test
LONGEST_CASE = 120.0  # seconds; a case that takes longer is ended


@dataclass(frozen=True)
class Context:
    """kind: "cuda" or "cpu". ops: names, or None for all. skip: providers. budget: seconds of this section."""

    kind: str
    quick: bool
    ops: Sequence[str] | None
    skip: Sequence[str]
    budget: float
    say: Callable[[str], None]


@dataclass(frozen=True)
class Section:
    """budgets: seconds by kind of device, then quick or not; kinds: the devices on which it has something to say."""

    name: str
    run: Callable[[Context], Iterator[Part]]
    budgets: dict[str, tuple[float, float]]

    def budget(self, kind: str, quick: bool) -> float | None:
        return self.budgets[kind][quick] if kind in self.budgets else None


def environment() -> dict[str, str]:
    """Return the environment of a child: this checkout's packages, and no interpreter, which is never timed."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def correctness(context: Context) -> Iterator[Part]:
    """Run the kernels' own tests, a process a file: with a GPU compiled and in bfloat16 too, else interpreted."""
    tests = ROOT / "tests/kernels"
    # What the compile report's tests look at needs no device. With many workers large files come first, as they decide
    # when the last one ends; on a CPU last, as the interpreter may not end them in time.
    names = [p for p in tests.glob("test_*.py") if p.name != "test_compile_report.py"]
    names.sort(key=_size, reverse=context.kind == "cuda")
    if context.ops is not None:
        names = [p for p in names if any(op.split("_")[0] in p.name for op in context.ops)]
    workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    end = time.monotonic() + context.budget
    found: dict[str, Part] = {}
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_run_tests, path, end): path.name for path in names}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            part = found[futures[future]]
            context.say(f"{futures[future]}: {part['passed']} passed, {part['failed']} failed{_because(part)}")
            yield {"files": dict(sorted(found.items()))}


def _size(path: Path) -> int:
    return path.stat().st_size


def _because(part: Part) -> str:
    return f", {part['reason']}" if part.get("reason") else ""


def _run_tests(path: Path, end: float) -> Part:
    """Run one file of tests and count; what was counted before the time was over stays."""
    left = end - time.monotonic()
    if left < 1:
        return {"passed": 0, "failed": 0, "skipped": 0, "reason": "not run: no time left in the budget"}
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", str(path)]
    reason = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            status = child.wait(timeout=left)
            if status not in (0, 1, 5):
                reason = f"pytest ended with status {status}"
        except subprocess.TimeoutExpired:
            reason = "stopped: no time left in the budget"
        finally:
            _end(child)
        output.seek(0)
        lines = output.read().splitlines()
    verdicts = {word: [x for x in lines if f" {word}" in x and "::" in x] for word in WORDS}
    failed = [x for x in verdicts["FAILED"] + verdicts["ERROR"] if not x.startswith(("FAILED", "ERROR"))]
    return {
        "passed": len(verdicts["PASSED"]),
        "failed": len(failed),
        "skipped": len(verdicts["SKIPPED"]),
        "seconds": time.monotonic() - start,
        "failures": [x.split(" FAILED")[0].split(" ERROR")[0].rpartition("/")[2] for x in failed][:20],
        "reason": reason or ("" if verdicts["PASSED"] or failed else "nothing ran: " + (lines[-1:] or ["?"])[0][:160]),
    }


def _end(child: subprocess.Popen[Any]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()


def ceilings(context: Context) -> Iterator[Part]:
    """Measure copy bandwidth and rates of matrix products."""
    found: Part = {}
    with Worker("ceilings", context, []) as worker:
        for line in worker.lines(time.monotonic() + context.budget):
            found = line["ceilings"]
            yield {"of": found}
        if worker.reason:
            yield {"of": found, "reason": worker.reason}
    for name, ceiling in found.items():
        context.say(f"{name}: {ceiling['rate'] or 0:.3g} a second, {ceiling['what']}")


def ops(context: Context) -> Iterator[Part]:
    """Measure the cases until the budget is over; a case that ends its process is blamed, and the rest goes on."""
    from benchmarks import worker as worker_module  # imports torch

    names = list(context.ops) if context.ops is not None else None
    left = worker_module.cases(context.kind, quick=context.quick, ops=names)
    rows: list[Part] = []
    not_run: list[Part] = []
    clocks: list[str] = []  # of the multiprocessors, at the end of each case
    end = time.monotonic() + context.budget
    while left and time.monotonic() < end:
        current: tuple[str, str] | None = None
        with Worker("ops", context, left) as worker:
            for line in worker.lines(end):
                if "start" in line:
                    current = (line["start"][0], line["start"][1])
                    continue
                assert current is not None
                left.remove(current)
                rows += line.get("rows", [])
                if "failed" in line:
                    not_run.append({"case": list(current), "reason": line["reason"]})
                context.say(f"{', '.join(current)}: {line.get('reason', 'measured')}")
                current = None
                clocks += [smi("clocks.sm")] if context.kind == "cuda" else []
                yield {"rows": rows, "not_run": not_run + _no_time(left), "clocks": clocks}
        if time.monotonic() >= end:
            break
        if current is None and left:  # it ended without having begun: starting it again would not help
            not_run += [{"case": list(c), "reason": worker.reason} for c in left]
            left = []
        elif current is not None:
            left.remove(current)
            not_run.append({"case": list(current), "reason": worker.reason})
            context.say(f"{', '.join(current)}: {worker.reason}")
    yield {"rows": rows, "not_run": not_run + _no_time(left), "clocks": clocks}


def _no_time(left: Sequence[tuple[str, str]]) -> list[Part]:
    return [{"case": list(case), "reason": "no time left in the budget"} for case in left]


class Worker:
    """A measuring process and the lines that it writes."""

    def __init__(self, what: str, context: Context, cases: Sequence[tuple[str, str]]):
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        self._lines, self._log = Path(self._folder.name, "lines"), Path(self._folder.name, "log")
        self._lines.touch()
        self.reason = ""
        command = [sys.executable, "-m", "benchmarks.worker", what, "--to", str(self._lines)]
        command += ["--cases", json.dumps(cases), "--skip", json.dumps(context.skip)] + ["--quick"] * context.quick
        with self._log.open("w", encoding="utf-8") as log:
            self._child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._child)
        self._folder.cleanup()

    def lines(self, end: float) -> Iterator[Part]:
        """Yield lines as they come, until the process ends or has to: at `end`, or when nothing came for too long."""
        heard = time.monotonic()
        with self._lines.open(encoding="utf-8") as file:
            rest = ""
            while True:
                status = self._child.poll()  # before reading: what it wrote last is then read too
                rest += file.read()
                *whole, rest = rest.split("\n")
                for line in whole:
                    heard = time.monotonic()
                    yield json.loads(line)
                now = time.monotonic()
                if status is not None:
                    if status:
                        self.reason = f"the process ended with status {status}: {self._last_words()}"
                    return
                if now > end or now - heard > LONGEST_CASE:
                    self.reason = "no time left in the budget" if now > end else f"more than {LONGEST_CASE:.0f} s"
                    _end(self._child)
                    return
                time.sleep(0.05)

    def _last_words(self) -> str:
        lines = [x for x in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
        return lines[-1][:200] if lines else "it said nothing"


def compile_summary(context: Context) -> Iterator[Part]:
    """Sum up what the compilers say of every kernel: kernels/compile_report.json, which needs no GPU."""
    path = ROOT / "kernels/compile_report.json"
    if not path.exists():
        yield {"reason": "kernels/compile_report.json is missing: run python -m minillm_kernels.compile_report"}
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[tuple[str, str], list[Part]] = {}
    for row in record["rows"]:
        groups.setdefault((row["op"], row["target"]), []).append(row)
    yield {
        "triton": record["triton"],
        "table": [
            {
                "op": op,
                "target": target,
                "variants": len(rows),
                "registers": max(r["registers"] for r in rows),
                "spilling": sum(r["spill_stores"] + r["spill_loads"] > 0 for r in rows),
                "shared": max(r["shared"] for r in rows),
                "resident_warps": min(r["resident_warps"] for r in rows),
                "matrix_unit": sum(bool(r["matrix"]) for r in rows),
            }
            for (op, target), rows in groups.items()
        ],
    }


SECTIONS = (  # on a GPU 8 minutes in all, with the start of each process; on a CPU 15; the second number is --quick's
    Section("correctness", correctness, {"cuda": (150, 40), "cpu": (300, 30)}),
    Section("ceilings", ceilings, {"cuda": (40, 30), "cpu": (60, 40)}),
    Section("ops", ops, {"cuda": (250, 60), "cpu": (450, 60)}),
    Section("compile", compile_summary, {"cpu": (10, 10)}),
)
