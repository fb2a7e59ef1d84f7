"""The parts of the page, one for each section, in Markdown.

Read next: `plots.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import figures

Part = Mapping[str, Any]
Result = Mapping[str, Any]

OPS_NOTES = """\
- **time**: median of the rounds, ± half the distance of the quartiles; rounds of all providers in turn. On a CPU all
  providers but compiled ones are visited up to three times, each time in a round of all cases, as far as the budget
  goes: median of the visits, ± half of what lies between the lowest and the highest of their quartiles. graph: calls on
  copies of the inputs that together exceed the second-level cache, replayed without launches; events: the same without
  a graph; clock: on a CPU, whose caches are not emptied, so that small cases may pass their ceiling; freed memory is
  kept in the process, as in training.
- **of ceiling**: the least time that the task needs at this run's ceilings, as a share of the time; bound by says which
  ceiling that is. Bytes and operations are those of the task, the same for all providers.
- **of a copy**: the time of a kernel that reads half of these bytes and writes the other half, timed beside the others
  as the provider `copy`, as a share of the time. Of a small case it is the better measure: filling and emptying the
  device takes its part of both.
- **error**: largest distance to float64, as a share of the largest number, and in brackets as a share of what is
  allowed, for this distance or in root mean square, whichever share is larger (twice the reference's in the same dtype,
  plus a few roundings: `check.py`). Above 1 it is wrong: no speed-up.
- **speed-up**: over the `torch` backend of this project, of a provider that was visited once over its first visit.
  **memory**: at the peak of one call, beside its inputs.
"""
RECIPES_NOTES = """\
Steps of this project's trainer on random tokens, each contender in a process of its own, turn by turn: batch, forward
and backward pass, clipping, fused AdamW. A peer stands in the place of the model and takes its own loss; it gets the
same batches, the same optimiser and the same settings of the allocator.

- **tokens/s**: of the median turn, ± half the distance of the quartiles.
- **MFU**: (6 N + 12 L C T) operations a token, over the data sheet's rate and over this run's rate of products in the
  same dtype; N is the weights that multiply, the tied output weight once, and for masked LM only the hidden tokens'
  share of it (`minillm/model/count.py`). The count is the same for a peer, whatever it multiplies beside.
- **memory**: on a GPU at the peak of a step, weights and optimiser included; on a CPU what the process took on top of
  its imports.
- **beside the peer**: tokens/s over those of the fastest right peer. Not for the recipe as its file has it, which is
  another model, nor for a contender that is wrong: other parameters than ours, a first or last loss that is not that
  of random tokens within 5 %, no gradient.
"""
MOST_KERNELS = 20  # that are named
LADDER_NOTES = """\
The ladder, each rung with what is named and all before it; naive is the maths as it is written down, op by op, and in
minillm all other ops have their kernels too.
Predicted: what the ops that PyTorch is asked for read and write over the copy bandwidth, plus the products' operations
over their rate (`training/work.py`). What torch.compile fuses is not asked for op by op: that rung has no prediction.
The remark of a rung says so where it takes other rows at once than the one before it, and its measured gain is of both:
attention by hand holds all scores, of fewer rows than a large GPU takes without. Of GPT-2 on an H200 64 rows in place
of 16 were worth 1.10 times by themselves (`GPU_LADDER.md`).
"""


def lines_of(name: str, part: Part, result: Result) -> Iterator[str]:
    """Yield the lines of one section."""
    written = {
        "correctness": _correctness,
        "ceilings": _ceilings,
        "ops": _ops,
        "recipes": _recipes,
        "scaling": _scaling,
        "launches": _launches,
        "compile": _compile,
    }
    try:
        yield from list(written.get(name, _unknown)(part, result))
    except KeyError as missing:  # of a section that a defect ended before it had found anything
        yield from (f"## {name}", "", f"Nothing was found: no {missing}.")


def rows_of(result: Result, section: str = "ops") -> list[Mapping[str, Any]]:
    """Return what a section measured."""
    return result["sections"].get(section, {}).get("rows", [])


def ceilings_of(result: Result) -> Mapping[str, Any]:
    """Return the ceilings of a run by name."""
    return result["sections"].get("ceilings", {}).get("of", {})


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int | None = None) -> list[str]:
    """Return a table in Markdown; columns after the first `words`, where that is said, are numbers: on the right."""
    bar = "|".join("---" if words is None or place < words else "---:" for place in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{bar}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _unknown(part: Part, result: Result) -> Iterator[str]:
    yield f"A part that this page does not know: {', '.join(part)}"


def _correctness(part: Part, result: Result) -> Iterator[str]:
    yield "## Correctness"
    yield ""
    where = "compiled" if result["header"]["kind"] == "cuda" else "in Triton's interpreter, which is not timed"
    files = part["files"]
    done, there = (sum(f[key] for f in files.values()) for key in ("passed", "tests"))
    each = f", of each test function the {part['each']} cases that differ most" if part["each"] else ""
    yield f"`tests/kernels`, the kernels {where}: {done:,} of {there:,} tests passed{each}; the rest by `make test`."
    yield ""
    rows = [
        (
            name,
            f"{f['passed']} of {f['tests']}",
            str(f["failed"]),
            f"{f.get('seconds', 0):.0f} s",
            f.get("reason", ""),
        )
        for name, f in files.items()
    ]
    yield from table(("tests", "passed", "failed", "time", "remark"), rows)
    failures = [x for f in files.values() for x in f.get("failures", ())]
    if failures:
        yield ""
        yield from (f"- failed: `{name}`" for name in failures)


def _ceilings(part: Part, result: Result) -> Iterator[str]:
    yield "## Ceilings"
    yield ""
    rows = []
    for name, c in part["of"].items():
        rate = "-" if c["rate"] is None else byte_rate(c["rate"]) if name == "copy" else f"{flop(c['rate'])}/s"
        rows.append((name, rate, f"± {50 * c.get('spread', 0):.1f} %", c["what"]))
    yield from table(("ceiling", "rate", "spread", "of"), rows)
    if part.get("reason"):
        yield from ("", f"Not complete: {part['reason']}.")


def _ops(part: Part, result: Result) -> Iterator[str]:
    rows, ceilings = part["rows"], ceilings_of(result)
    yield "## Ops"
    yield ""
    yield OPS_NOTES
    heads = ("provider", "time", "rate", "of ceiling", "of a copy", "error", "speed-up", "memory", "remark")
    for key in dict.fromkeys(figures.key_of(r) for r in rows):
        group = [r for r in rows if figures.key_of(r) == key]
        op, shape, dtype, direction = key
        dims = " ".join(f"{n}={v}" for n, v in group[0]["dims"].items())
        limit = figures.bound(group[0], ceilings)
        yield f"### {op}, {shape}, {direction}"
        yield ""
        bound = f"bound by {limit[0]}, {time_of(limit[1])} at least" if limit else "ceilings not measured"
        yield f"{dims}, {dtype}; {group[0]['bytes'] / 1e6:.4g} MB, {flop(group[0]['flops'])}; {bound}."
        yield ""
        yield from table(heads, [_cells(r, rows, ceilings) for r in group])
        yield ""
    if clocks := list(dict.fromkeys(part.get("clocks", ()))):
        yield f"Clocks at the ends of the cases: {', '.join(clocks)}."
        yield ""
    yield from _not_run(part["not_run"], "case")


def _not_run(cases: Sequence[Part], name: str) -> Iterator[str]:
    if cases:
        yield "Not run:"
        yield ""
        for case in cases:
            what = case[name] if isinstance(case[name], str) else ", ".join(case[name])
            yield f"- {what}: {case['reason']}"


def _cells(row: figures.Row, rows: Sequence[figures.Row], ceilings: figures.Ceilings) -> tuple[str, ...]:
    """Return the cells of one provider."""
    error = row.get("error_share")
    errors = "not checked" if error is None else f"{row['error']:.1e} ({error:.2f})"
    if row["status"] == "not run":
        return (row["provider"], "not run", "", "", "", "" if error is None else errors, "", "", row["reason"])
    reached, faster = figures.share(row, ceilings), figures.speedup(row, rows)
    remarks = [row["method"]]
    remarks += [f"**wrong**: {row['reason']}"] if row["status"] == "wrong" else []
    remarks += ["**not finite**"] if row.get("finite") is False else []
    remarks += ["bits differ on repeat"] if row.get("repeats") is False else []
    remarks += [row["note"]] if row.get("note") else []
    return (
        row["provider"],
        f"{time_of(row['seconds'])} ± {50 * figures.spread(row):.1f} %",
        rate_of(row),
        percent(reached),
        percent(figures.beside_copy(row, rows)),
        errors,
        "" if faster is None else f"{faster:.2f}",
        f"{row['peak_bytes'] / 1e6:.4g} MB" if "peak_bytes" in row else "",
        ", ".join(remarks),
    )


def _recipes(part: Part, result: Result) -> Iterator[str]:
    rows, ceilings = part["rows"], ceilings_of(result)
    yield "## Training recipes"
    yield ""
    yield RECIPES_NOTES
    heads = (
        "contender",
        "tokens/s",
        "step",
        "MFU, data sheet",
        "MFU, measured",
        "memory",
        "parameters",
        "beside the peer",
        "first step after",
        "remark",
    )
    for recipe in dict.fromkeys(r["recipe"] for r in rows):
        group = [r for r in rows if r["recipe"] == recipe]
        known = next((r for r in group if "sizes" in r), None)
        yield f"### {recipe}"
        yield ""
        if known is not None:
            sizes = " ".join(f"{n}={v}" for n, v in known["sizes"].items())
            yield f"{sizes}; {known['tokens']:,} tokens and {flop(known['flops'])} a step."
            yield ""
        yield from table(heads, [_contender(r, rows, part, ceilings) for r in group])
        yield ""
        for row in group:
            if row.get("kernels"):
                yield from _kernels(row)
        rungs = [r for name in part["ladders"].get(recipe, ()) for r in group if r["contender"] == name]
        if rungs:
            yield from _ladder(rungs, ceilings)


def _kernels(row: Part) -> Iterator[str]:
    """Yield where the time of a step goes, by kernel."""
    kernels, busy = row["kernels"], sum(seconds for _, _, seconds in row["kernels"])
    said = f"{time_of(busy)} in {len(kernels)} kinds of kernel"
    if "idle" in row:
        said += f", and {time_of(row['idle'])} in which the GPU computes nothing"
    yield f"What a step of {row['contender']} goes to, from torch.profiler: {said}."
    yield ""
    first, rest = kernels[:MOST_KERNELS], kernels[MOST_KERNELS:]
    if rest:
        first = [*first, ["all others", *(sum(taken) for taken in list(zip(*rest, strict=True))[1:])]]
    cells = [(f"`{name}`", str(calls), time_of(s), percent(s / busy)) for name, calls, s in first]
    yield from table(("kernel", "calls", "time", "of all"), cells)
    yield ""


def _contender(row: Part, rows: Sequence[Part], part: Part, ceilings: figures.Ceilings) -> tuple[str, ...]:
    """Return the cells of one contender."""
    name = f"{row['contender']}{', ' + row['peer'] if row['peer'] else ''}"
    counts = f"{row['parameters']:,}" if "parameters" in row else ""
    if "seconds" not in row:
        return (name, "not run", *[""] * 4, counts, "", "", row["reason"])
    sheet = part["data_sheet"] if row["dtype"] == "bf16" else None
    beside = figures.beside_peer(row, rows)
    remarks = [row["dtype"]]
    remarks += [f"**wrong**: {row['reason']}"] if row["status"] == "wrong" else []
    remarks += [row["note"]] if "note" in row else []
    remarks += [f"B={row['sizes']['B']}, {row['micro_batches']} micro-batches"] if row["micro_batches"] > 1 else []
    return (
        name,
        f"{figures.tokens_per_second(row):,.0f} ± {50 * figures.spread(row):.1f} %",
        time_of(row["seconds"]),
        percent(figures.mfu(row, sheet)),
        percent(figures.mfu(row, figures.ceiling_rate(ceilings, f"matrix {row['dtype']}"))),
        f"{row['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in row else "",
        counts,
        "" if beside is None else f"{beside:.2f}",
        f"{row['to_first_step']:.1f} s",
        ", ".join(remarks),
    )


def _ladder(rungs: Sequence[Part], ceilings: figures.Ceilings) -> Iterator[str]:
    """Yield the ladder: what each rung was to gain, and what it gained."""
    yield LADDER_NOTES
    cells = []
    rows = None  # at once, of the last rung that said so
    for number, row in enumerate(rungs):
        before = rungs[number - 1] if number else None
        gained = [
            _gained(None if before is None else value(before), value(row))
            for value in (lambda r: figures.predicted(r, ceilings), lambda r: r.get("seconds"))
        ]
        remarks = [] if "seconds" in row else [row["reason"]]
        if "sizes" in row:
            rows, others = row["sizes"]["B"] // row["micro_batches"], rows
            remarks += [f"{rows} rows at once, {others} before"] if others not in (None, rows) else []
        cells.append((row["contender"], *gained[0], *gained[1], ", ".join(remarks)))
    heads = ("rung", "predicted step", "predicted gain", "measured step", "measured gain", "remark")
    yield from table(heads, cells)
    yield ""


def _gained(before: float | None, now: float | None) -> tuple[str, str]:
    if now is None:
        return "", ""
    return time_of(now), "" if before is None else f"{before / now:.2f} times"


def _scaling(part: Part, result: Result) -> Iterator[str]:
    from benchmarks.ops.scaling import SWEEPS

    rows, ceilings = part["rows"], ceilings_of(result)
    yield "## Scaling"
    yield ""
    yield "Rate, and in brackets the share of the ceiling: over S and C with the same number of tokens or elements in"
    yield "all, over B with more and more. A row that is wrong has neither."
    for sweep in SWEEPS:
        names = [s.name for s in sweep.shapes[result["header"]["kind"]]]
        for direction in dict.fromkeys(r["direction"] for r in rows):
            points = [r for r in rows if r["op"] == sweep.op and r["shape"] in names and r["direction"] == direction]
            if not points:
                continue
            providers = list(dict.fromkeys(r["provider"] for r in points if figures.is_right(r)))
            yield from ("", f"### {sweep.op} over {sweep.variable}, {direction}", "")
            cells = []
            for name in dict.fromkeys(r["shape"] for r in points):
                found = {r["provider"]: r for r in points if r["shape"] == name and figures.is_right(r)}
                cells.append((name, *[_point(found[p], ceilings) if p in found else "" for p in providers]))
            yield from table((sweep.variable, *providers), cells)
    yield ""
    yield from _not_run(part["not_run"], "case")


def _point(row: figures.Row, ceilings: figures.Ceilings) -> str:
    reached = figures.share(row, ceilings)
    return rate_of(row) + ("" if reached is None else f" ({percent(reached)})")


def _launches(part: Part, result: Result) -> Iterator[str]:
    yield "## Launch tables"
    yield ""
    if "found" not in part:
        yield f"Not run: {part['reason']}."
        return
    better = [f for f in part["found"] if "line" in f]
    stays = [f for f in part["found"] if "line" not in f]
    if better:
        yield "Entries that another setting makes faster, its results held against float64; as the tables have them:"
        yield ""
        yield "```python"
        for file in dict.fromkeys(f["file"] for f in better):
            yield f"# {file}"
            last = {f["name"]: f["line"] for f in better if f["file"] == file}  # of a row the line with all its changes
            yield from (f"{line}  # {name}" if file.endswith("configs.py") else line for name, line in last.items())
        yield "```"
        yield ""
        cells = [(f["title"], f["was"], f["now"], f"{f['faster']:.2f} times", str(f["tried"])) for f in better]
        yield from table(("entry", "was", "now", "as fast", "tried"), cells)
        yield ""
    if stays:
        yield "Entries that stay:"
        yield ""
        for f in stays:
            why = f.get("reason") or f"the fastest of {f['tried']} that ran, {f['failed']} did not"
            yield f"- {f['title']}: {why}"
        yield ""
    yield from _not_run(part["not_run"], "title")


def _compile(part: Part, result: Result) -> Iterator[str]:
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


def rate_of(row: figures.Row) -> str:
    """Return operations a second where they are products, else bytes a second."""
    if row["unit"] == "matrix":
        return f"{flop(row['flops'] / row['seconds'])}/s"
    return byte_rate(row["bytes"] / row["seconds"])


def byte_rate(rate: float) -> str:
    """Return bytes a second with their unit, in two digits at least.

    >>> byte_rate(4.2137e12), byte_rate(4.92e8)
    ('4214 GB/s', '0.49 GB/s')
    """
    return f"{rate / 1e9:.0f} GB/s" if rate >= 1e10 else f"{rate / 1e9:.2g} GB/s"


def percent(share: float | None) -> str:
    """Return a share in per cent, or nothing."""
    return "" if share is None else f"{100 * share:.0f} %"


def time_of(seconds: float) -> str:
    """Return a time with its unit.

    >>> time_of(0.0123), time_of(4.5e-6)
    ('12.3 ms', '4.5 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us"


def flop(number: float) -> str:
    """Return a number of operations with its unit.

    >>> flop(3.9642e9), flop(5.6e13)
    ('3.964 GFLOP', '56 TFLOP')
    """
    unit, size = ("T", 1e12) if number >= 1e12 else ("G", 1e9)
    return f"{number / size:.4g} {unit}FLOP"
