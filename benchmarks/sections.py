"""What a run consists of: sections in order, each with a time budget, each adding its part to the result.

A section gets the context of the run and yields as it goes; after each yield the result is written, so that a run that
is stopped has lost nothing. What does not fit into its budget is listed as not run. Another section is another entry of
`SECTIONS`, and another part of the page in `report.py`.

Read next: `report.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import figures
from benchmarks.child import Child
from benchmarks.context import Context, Part, Section
from benchmarks.correctness import correctness
from benchmarks.launches import launches
from benchmarks.machine import ROOT, clock
from benchmarks.training.section import training

Case = tuple[str, str]  # op, shape
COMPILERS = ("torch.compile", "FlexAttention")  # providers that a quick run goes without
MOST_CRASHES = 3  # of one case, after which it is given up
# Seconds of silence after which a provider is given up: on a GPU a kernel that never ends would take the whole budget,
# and no compiler half a minute; on a CPU compilers do.
PATIENCE = {"cuda": 45.0, "cpu": 120.0}
# How often a case is visited at most, once all cases have been before and in another process each time. A GPU's clocks
# stay where they are; a CPU that is shared drifts by more in a minute than in the second that the rounds of one visit
# take. Compiled providers, which take longest to prepare, are visited once.
VISITS = {"cuda": 1, "cpu": 3}
AGAIN = 0.25  # of a budget, for all visits but the first


def ceilings(context: Context) -> Iterator[Part]:
    """Measure copy bandwidth and rates of matrix products."""
    found: Part = {}
    with Child("benchmarks.worker", ["ceilings", *["--quick"] * context.quick]) as worker:
        for line in worker.lines(time.monotonic() + context.budget):
            found = line["ceilings"]
            yield {"of": found}
        if worker.reason:
            yield {"of": found, "reason": worker.reason}
    for name, ceiling in found.items():
        context.say(f"{name}: {ceiling['rate'] or 0:.3g} a second, {ceiling['what']}")


def ops(context: Context) -> Iterator[Part]:
    """Measure every op at its shapes, the most telling first."""
    from benchmarks import worker  # imports torch

    names = list(context.ops) if context.ops is not None else None
    yield from measured(context, "ops", worker.cases(context.kind, quick=context.quick, ops=names))


def scaling(context: Context) -> Iterator[Part]:
    """Measure a few ops over the length of a sequence, the width and the batch."""
    from benchmarks.ops.scaling import SWEEPS

    sweeps = [s for s in SWEEPS if context.ops is None or s.op in context.ops]
    cases = [(s.op, shape.name) for s in sweeps for shape in s.shapes[context.kind]]
    yield from measured(context, "scaling", cases)


def measured(context: Context, what: str, cases: Sequence[Case]) -> Iterator[Part]:
    """Measure cases until the budget is over; a provider that ends the process is blamed, and the rest goes on.

    Its case begins anew without it. A case whose process ends with nobody to blame, or again and again, is given up.
    Then come the visits after the first.
    """
    ends = time.monotonic() + context.budget
    left = list(cases)
    blamed: dict[Case, dict[str, str]] = {}  # case -> provider -> why it is left out
    rows: list[Part] = []
    not_run: list[Part] = []
    clocks: list[str] = []  # of the multiprocessors, at the end of each case
    until = ends - AGAIN * context.budget * (VISITS[context.kind] > 1)
    while left and time.monotonic() < until:
        case, provider = None, None
        given = [[*c, blamed.get(c, {})] for c in left]
        options = _options(context, COMPILERS if context.quick else ())  # each takes as long as a whole case
        words, patience = [what, "--cases", json.dumps(given), *options], PATIENCE[context.kind]
        with Child("benchmarks.worker", words, patience=patience) as worker:
            for line in worker.lines(until):
                if "start" in line:
                    case, provider = (line["start"][0], line["start"][1]), None
                elif "provider" in line:
                    provider = line["provider"]
                else:
                    assert case is not None
                    left.remove(case)
                    rows += line.get("rows", [])
                    if "failed" in line:
                        not_run.append({"case": list(case), "reason": line["reason"]})
                    context.say(f"{', '.join(case)}: {line.get('reason', 'measured')}")
                    case = None
                    clocks += [clock()] if context.kind == "cuda" else []
                    yield {"rows": rows, "not_run": not_run + _no_time(left), "clocks": clocks}
        if time.monotonic() >= until:
            break
        if case is None:  # it ended without having begun: starting it again would not help
            not_run += [{"case": list(c), "reason": worker.reason} for c in left]
            left = []
        elif provider is None or len(blamed.get(case, {})) == MOST_CRASHES:
            left.remove(case)
            not_run.append({"case": list(case), "reason": worker.reason})
            context.say(f"{', '.join(case)}: {worker.reason}")
        else:
            blamed.setdefault(case, {})[provider] = worker.reason
            context.say(f"{', '.join(case)}, {provider}: {worker.reason}")
    part = {"rows": rows, "not_run": not_run + _no_time(left), "clocks": clocks}
    yield part
    for number in range(1, VISITS[context.kind]):
        if time.monotonic() >= ends or not any("seconds" in row for row in rows):
            break
        context.say(f"{what}: visit {number + 1} of {VISITS[context.kind]}")
        visit(context, what, rows, ends)
        yield part


def visit(context: Context, what: str, rows: Sequence[Part], until: float) -> None:
    """Time the providers of all cases that were timed before once more, and put what comes of it into their rows."""
    timed = {(*figures.key_of(row), row["provider"]): row for row in rows if "seconds" in row}
    gone: dict[Case, dict[str, str]] = {(row["op"], row["shape"]): {} for row in rows}
    for row in rows:
        if "seconds" not in row:
            gone[row["op"], row["shape"]][row["provider"]] = row["reason"]
    cases = json.dumps([[*case, providers] for case, providers in gone.items()])
    options = _options(context, COMPILERS)
    with Child("benchmarks.worker", [what, "--again", "--cases", cases, *options]) as worker:
        for line in worker.lines(until):
            for found in line.get("rows", ()):
                figures.add_visit(timed[*figures.key_of(found), found["provider"]], found)
            if "failed" in line:
                context.say(f"{', '.join(line['failed'])}: not visited again: {line['reason']}")
        if worker.reason:
            context.say(f"{what}: the visit ended early: {worker.reason}")


def _no_time(left: Sequence[Case]) -> list[Part]:
    return [{"case": list(case), "reason": "no time left in the budget"} for case in left]


def _options(context: Context, left_out: Sequence[str]) -> list[str]:
    return ["--skip", json.dumps([*context.skip, *left_out]), *["--quick"] * context.quick]


def compile_summary(context: Context) -> Iterator[Part]:
    """Sum up what the compilers say of every kernel: kernels/compile_report.json, which needs no GPU."""
    path = ROOT / "kernels/compile_report.json"
    if not path.exists():
        yield {"reason": "kernels/compile_report.json is missing: run python -m minillm_kernels.compile_report"}
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[Case, list[dict[str, Any]]] = {}
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


# Seconds, without --quick and with it. On a GPU 8 minutes in all and on a CPU 15, less half a minute for what lies
# between the sections: header, plots, page, and processes that take their last seconds to end. What --tune explores
# in place of this has a budget of its own: `launches.WIDE_BUDGET`.
SECTIONS = (
    Section("correctness", correctness, {"cuda": (85, 30), "cpu": (170, 25)}),
    Section("ceilings", ceilings, {"cuda": (20, 12), "cpu": (40, 20)}),
    Section("ops", ops, {"cuda": (110, 45), "cpu": (330, 45)}),
    Section("recipes", training, {"cuda": (185, 60), "cpu": (230, 60)}),
    Section("launches", launches, {"cuda": (20, 10), "cpu": (1, 1)}),
    Section("scaling", scaling, {"cuda": (25, 0), "cpu": (70, 0)}),
    Section("compile", compile_summary, {"cpu": (5, 5)}),
)
