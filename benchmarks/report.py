"""A result as JSON, and the page made of it: results/<device>/<date>-<commit>.json, .md and plots.

The page is made from the JSON alone, so that it can be made again. No speed-up is printed for a row whose check failed,
was not made, or whose baseline's did.

Read next: `plots.py`, `compare.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures

Result = Mapping[str, Any]

NOTES = """\
- **time**: median of the rounds, ± half the distance of the quartiles; rounds of all providers in turn. graph: calls on
  copies of the inputs that together exceed the second-level cache, replayed without launches; events: the same without
  a graph; clock: on a CPU, whose caches are not emptied, so that small cases may pass their ceiling.
- **of ceiling**: the least time that the task needs at this run's ceilings, as a share of the time; bound by says which
  ceiling that is. Bytes and operations are those of the task, the same for all providers.
- **error**: largest distance to float64, as a share of the largest number, and in brackets as a share of what is
  allowed (twice the reference's in the same dtype, plus a few roundings: `check.py`). Above 1 it is wrong: no speed-up.
- **speed-up**: over the `torch` backend of this project. **memory**: at the peak of one call, beside its inputs.
"""


def write_json(result: Result, path: Path) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def write_page(result: Result, folder: Path, stem: str) -> None:
    """Write the plots and the page beside the JSON; without matplotlib the page says so."""
    pictures: list[str] = []
    trouble = ""
    if rows_of(result):
        try:
            from benchmarks import plots

            pictures = [path.name for path in plots.draw(result, folder, stem)]
        except Exception as error:  # hours of measuring are not lost to a plot
            trouble = f"{type(error).__name__}: {error}"
            print(f"benchmarks: no plots, {trouble}", file=sys.stderr)
    (folder / f"{stem}.md").write_text(page(result, pictures, trouble), encoding="utf-8")


def rows_of(result: Result) -> list[Mapping[str, Any]]:
    return result["sections"].get("ops", {}).get("rows", [])


def ceilings_of(result: Result) -> Mapping[str, Any]:
    return result["sections"].get("ceilings", {}).get("of", {})


def status(result: Result) -> int:
    """Return 1 where a test failed or one of this project's own providers was wrong, else 0."""
    files = result["sections"].get("correctness", {}).get("files", {})
    ours = ("fused", "torch", "reference")
    wrong = any(r["status"] == "wrong" and r["provider"] in ours for r in rows_of(result))
    return int(wrong or any(f["failed"] for f in files.values()))


def page(result: Result, pictures: Sequence[str] = (), trouble: str = "") -> str:
    """Return the page in Markdown."""
    parts = {"correctness": _correctness, "ceilings": _ceilings, "ops": _ops, "compile": _compile}
    lines = list(_header(result))
    for name, part in result["sections"].items():
        lines += ["", *parts.get(name, _unknown)(part, result)]
        if name == "ops":
            lines += [x for picture in pictures for x in ("", f"![{picture}]({picture})")]
            lines += ["", f"No plots: {trouble}."] if trouble else []
    return "\n".join(lines) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    bar = "|".join("---" for _ in heads)
    return [f"| {' | '.join(heads)} |", f"|{bar}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _header(result: Result) -> Iterator[str]:
    head = result["header"]
    yield f"# {head['device']}, {head['date']}, commit {head['commit']}"
    yield ""
    yield f"Made by `python -m benchmarks{' --quick' * bool(result.get('quick'))}`; do not edit."
    yield ""
    for name, value in head.items():
        if name in ("device", "date", "commit", "kind"):
            continue
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        yield f"- {name}: {text}"


def _unknown(part: Result, result: Result) -> Iterator[str]:
    yield f"A part that this page does not know: {', '.join(part)}"


def _correctness(part: Result, result: Result) -> Iterator[str]:
    yield "## Correctness"
    yield ""
    where = "compiled" if result["header"]["kind"] == "cuda" else "in Triton's interpreter, which is not timed"
    yield f"`pytest tests/kernels`, the kernels {where}."
    yield ""
    rows = [
        (name, str(f["passed"]), str(f["failed"]), f"{f.get('seconds', 0):.0f} s", f.get("reason", ""))
        for name, f in part["files"].items()
    ]
    yield from table(("tests", "passed", "failed", "time", "remark"), rows)
    failures = [x for f in part["files"].values() for x in f.get("failures", ())]
    if failures:
        yield ""
        yield from (f"- failed: `{name}`" for name in failures)


def _ceilings(part: Result, result: Result) -> Iterator[str]:
    yield "## Ceilings"
    yield ""
    rows = []
    for name, c in part["of"].items():
        rate = "-" if c["rate"] is None else f"{c['rate'] / 1e9:.0f} GB/s" if name == "copy" else _tflops(c["rate"])
        rows.append((name, rate, f"± {50 * c.get('spread', 0):.1f} %", c["what"]))
    yield from table(("ceiling", "rate", "spread", "of"), rows)
    if part.get("reason"):
        yield from ("", f"Not complete: {part['reason']}.")


def _ops(part: Result, result: Result) -> Iterator[str]:
    rows, ceilings = part["rows"], ceilings_of(result)
    yield "## Ops"
    yield ""
    yield NOTES
    heads = ("provider", "time", "rate", "of ceiling", "error", "speed-up", "memory", "remark")
    for key in dict.fromkeys(figures.key_of(r) for r in rows):
        group = [r for r in rows if figures.key_of(r) == key]
        op, shape, dtype, direction = key
        dims = " ".join(f"{n}={v}" for n, v in group[0]["dims"].items())
        limit = figures.bound(group[0], ceilings)
        yield f"### {op}, {shape}, {direction}"
        yield ""
        bound = f"bound by {limit[0]}, {_time(limit[1])} at least" if limit else "ceilings not measured"
        yield f"{dims}, {dtype}; {group[0]['bytes'] / 1e6:.4g} MB, {group[0]['flops'] / 1e9:.4g} GFLOP; {bound}."
        yield ""
        yield from table(heads, [_cells(r, rows, ceilings) for r in group])
        yield ""
    if clocks := list(dict.fromkeys(part.get("clocks", ()))):
        yield f"Clocks at the ends of the cases: {', '.join(clocks)}."
        yield ""
    if part["not_run"]:
        yield "Not run:"
        yield ""
        yield from (f"- {', '.join(n['case'])}: {n['reason']}" for n in part["not_run"])


def _cells(row: figures.Row, rows: Sequence[figures.Row], ceilings: figures.Ceilings) -> tuple[str, ...]:
    """Return the cells of one provider."""
    error = row.get("error_share")
    errors = "not checked" if error is None else f"{row['error']:.1e} ({error:.2f})"
    if row["status"] == "not run":
        return (row["provider"], "not run", "", "", "" if error is None else errors, "", "", row["reason"])
    reached, faster = figures.share(row, ceilings), figures.speedup(row, rows)
    remarks = [row["method"]]
    remarks += [f"**wrong**: {row['reason']}"] if row["status"] == "wrong" else []
    remarks += ["**not finite**"] if row.get("finite") is False else []
    remarks += ["bits differ on repeat"] if row.get("repeats") is False else []
    remarks += [row["note"]] if row.get("note") else []
    matrix = row["unit"] == "matrix"
    rate = _tflops(row["flops"] / row["seconds"]) if matrix else f"{row['bytes'] / row['seconds'] / 1e9:.0f} GB/s"
    return (
        row["provider"],
        f"{_time(row['seconds'])} ± {50 * figures.spread(row):.1f} %",
        rate,
        "" if reached is None else f"{100 * reached:.0f} %",
        errors,
        "" if faster is None else f"{faster:.2f}",
        f"{row['peak_bytes'] / 1e6:.4g} MB" if "peak_bytes" in row else "",
        ", ".join(remarks),
    )


def _compile(part: Result, result: Result) -> Iterator[str]:
    yield "## What the compilers say"
    yield ""
    if "table" not in part:
        yield f"Not run: {part['reason']}."
        return
    yield f"Triton {part['triton']}, no GPU needed; every variant is in kernels/COMPILE_REPORT.md."
    yield ""
    names = ("op", "target", "variants", "registers", "spilling", "shared", "resident_warps", "matrix_unit")
    heads = (
        "op",
        "target",
        "variants",
        "most registers",
        "that spill",
        "most shared",
        "least resident warps",
        "on the matrix unit",
    )
    yield from table(heads, [[str(r[n]) for n in names] for r in part["table"]])


def _time(seconds: float) -> str:
    """Return a time with its unit.

    >>> _time(0.0123), _time(4.5e-6)
    ('12.3 ms', '4.5 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us"


def _tflops(rate: float) -> str:
    return f"{rate / 1e12:.4g} TFLOP/s"
