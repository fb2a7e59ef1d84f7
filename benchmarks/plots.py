"""The plots of a result: a roofline with every op on it, bars of speed-up, lines of scaling, bars of tokens a second.

Drawn without pyplot: no window system is asked.

Read next: `compare.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import figures
from benchmarks.parts import ceilings_of, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
DPI = 130
COLOURS = {
    "fused": "#c8501e",
    "torch": "#2f6db3",
    "torch.compile": "#5aa7a0",
    "reference": "#9a9a9a",
}
OTHER = ("#7b5aa6", "#b39b2f", "#4c7a34", "#a63d6b", "#6b4f3a", "#d58fb3", "#3c3c78", "#8fa6d5")
MARKERS = "osD^vPXd<>ph*"
OURS, OTHERS, PEERS = "#c8501e", "#dd9a76", "#8795a8"  # of a recipe: its plain model, its file's, transformers'


def draw(result: Result, folder: Path, stem: str) -> dict[str, list[Path]]:
    """Draw what there is to draw and return the files of each section."""
    ceilings = ceilings_of(result)
    ops, scaled, recipes = (rows_of(result, name) for name in ("ops", "scaling", "recipes"))
    ladders = result["sections"].get("recipes", {}).get("ladders", {})
    kind = result["header"]["kind"]
    figure_of = {
        ("ops", "roofline"): roofline(ops, ceilings),
        ("ops", "speedup"): speedups(ops),
        ("scaling", "scaling"): scaling(scaled, kind),
        ("recipes", "recipes"): training(recipes),
        ("recipes", "ladder"): ladder(recipes, ladders, ceilings),
    }
    made: dict[str, list[Path]] = {}
    for (section, name), figure in figure_of.items():
        if figure is not None:
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=DPI)
            made.setdefault(section, []).append(path)
    return made


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def roofline(rows: Sequence[figures.Row], ceilings: figures.Ceilings) -> Figure | None:
    """Return operations a second over operations a byte: this project's best provider of each case, and the roof.

    An op without floating-point operations, such as the forward pass of an embedding, has no place on it.
    """
    provider = "fused" if any(r["provider"] == "fused" and figures.is_right(r) for r in rows) else "torch"
    shown = [r for r in rows if r["provider"] == provider and figures.is_right(r) and r["flops"]]
    copy = figures.ceiling_rate(ceilings, "copy")
    if not shown or not copy:
        return None
    figure = new_figure(11, 6)
    axes = figure.add_subplot()
    low = min(r["flops"] / r["bytes"] for r in shown) / 2
    ridges = [c["rate"] / copy for name, c in ceilings.items() if name.startswith("matrix") and c["rate"]]
    high = 2 * max([r["flops"] / r["bytes"] for r in shown] + ridges)
    used = {f"matrix {r['dtype']}" for r in shown}
    for name, ceiling in ceilings.items():
        if name.startswith("matrix") and ceiling["rate"]:
            ridge, width = ceiling["rate"] / copy, 1.4 if name in used else 0.7
            axes.plot([low, ridge, high], [low * copy, *[ceiling["rate"]] * 2], color="#777777", lw=width, zorder=1)
            axes.annotate(name, (1.1 * ridge, ceiling["rate"]), ha="left", va="bottom", fontsize=8, color="#555555")
    axes.annotate("copy", (low * 1.6, low * 1.6 * copy), ha="right", va="bottom", fontsize=8, color="#555555")
    for number, op in enumerate(dict.fromkeys(r["op"] for r in shown)):
        for direction, filled in (("forward", False), ("forward+backward", True)):
            of_op = [r for r in shown if r["op"] == op and r["direction"] == direction]
            colour = f"C{number % 10}"
            axes.scatter(
                [r["flops"] / r["bytes"] for r in of_op],
                [r["flops"] / r["seconds"] for r in of_op],
                marker=MARKERS[number % len(MARKERS)],
                s=34,
                facecolors=colour if filled else "none",
                edgecolors=colour,
                linewidths=1.2,
                label=op if of_op and (filled or op == "attention_decode") else None,
                zorder=2,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"Roofline at this run's ceilings: {provider}; hollow forward, filled with backward", fontsize=10)
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(alpha=0.25)
    return figure


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each provider; the project's own have always the same."""
    others = [name for name in dict.fromkeys(names) if name not in COLOURS]
    return COLOURS | {name: OTHER[i % len(OTHER)] for i, name in enumerate(others)}


def speedups(rows: Sequence[figures.Row]) -> Figure | None:
    """Return bars of speed-up over `torch` with the quartiles' range: each op's first shape, a column a direction."""
    from matplotlib.ticker import LogLocator, NullFormatter

    first = {r["op"]: r["shape"] for r in reversed(rows)}
    shown = [r for r in rows if first[r["op"]] == r["shape"] and figures.speedup(r, rows) and r["provider"] != "torch"]
    if not shown:
        return None
    directions = list(dict.fromkeys(r["direction"] for r in shown))
    bars = {d: [r for r in shown if r["direction"] == d] for d in directions}
    tallest = max(len(group) + len({r["op"] for r in group}) for group in bars.values())
    figure = new_figure(11, 1.2 + 0.15 * tallest)
    for column, direction in enumerate(directions):
        axes = figure.add_subplot(1, len(directions), column + 1)
        place, names, titles = 0, dict[int, str](), dict[int, str]()
        for op in dict.fromkeys(r["op"] for r in bars[direction]):
            titles[place], place = op, place + 1
            for row in (r for r in bars[direction] if r["op"] == op):
                faster = figures.speedup(row, rows) or 0.0
                wings = [[faster * (1 - row["seconds"] / row["high"])], [faster * (row["seconds"] / row["low"] - 1)]]
                colour = COLOURS.get(row["provider"], PEERS)
                axes.barh(place, faster - 1, left=1, height=0.85, xerr=wings, color=colour, error_kw={"lw": 0.7})
                names[place], place = row["provider"], place + 1
        axes.axvline(1, color="#333333", lw=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())  # else a short axis has its minor numbers one over another
        axes.set_yticks(list(names), list(names.values()), fontsize=6)
        axes.set_ylim(place - 0.4, -0.6)
        beside = axes.get_yaxis_transform()  # x in widths of the axes, y in bars
        for at, op in titles.items():
            axes.text(-0.015, at, op, transform=beside, ha="right", va="center", fontsize=7, fontweight="bold")
        axes.set_xlabel("times as fast as the torch backend", fontsize=8)
        axes.set_title(direction, fontsize=10)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.25, axis="x", which="both")
    others = [(name, colour) for name, colour in COLOURS.items() if any(r["provider"] == name for r in shown)]
    _legend(figure, [*others, ("others", PEERS)])
    return figure


def _legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8)


def scaling(rows: Sequence[figures.Row], kind: str) -> Figure | None:
    """Return a panel for each sweep: the rate over the size that grows, a line a provider."""
    from benchmarks.ops.scaling import SWEEPS

    right = [r for r in rows if figures.is_right(r)]
    panels = []
    for sweep in SWEEPS:
        names = [shape.name for shape in sweep.shapes[kind]]
        of_sweep = [r for r in right if r["op"] == sweep.op and r["shape"] in names]
        if of_sweep:
            panels.append((sweep, of_sweep))
    if not panels:
        return None
    figure = new_figure(4.3 * len(panels), 4.4)
    colours = colours_of([r["provider"] for r in right])
    for number, (sweep, of_sweep) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        matrix = of_sweep[0]["unit"] == "matrix"
        work, scale, unit = "bytes", 1e9, "GB/s"
        if matrix:
            large = max(r["flops"] / r["seconds"] for r in of_sweep) >= 1e12
            work, scale, unit = ("flops", 1e12, "TFLOP/s") if large else ("flops", 1e9, "GFLOP/s")
        for provider in dict.fromkeys(r["provider"] for r in of_sweep):
            for direction, style in (("forward", "--"), ("forward+backward", "-")):
                line = [r for r in of_sweep if r["provider"] == provider and r["direction"] == direction]
                line.sort(key=lambda r: r["dims"][sweep.variable])
                x = [r["dims"][sweep.variable] for r in line]
                y = [r[work] / r["seconds"] / scale for r in line]
                axes.plot(x, y, style, marker="o", ms=3, color=colours[provider])
        sizes = sorted({r["dims"][sweep.variable] for r in of_sweep})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes], fontsize=7, rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlabel(f"{sweep.what}, {sweep.variable}", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.set_title(sweep.op, fontsize=10)
        axes.grid(alpha=0.25)
    figure.suptitle("dashed forward, solid with backward", fontsize=8)
    _legend(figure, [(p, colours[p]) for p in dict.fromkeys(r["provider"] for r in right)])
    return figure


def training(rows: Sequence[figures.Row]) -> Figure | None:
    """Return a panel for each recipe: bars of tokens a second with the quartiles' range."""
    right = [r for r in rows if r["status"] == "measured"]
    names = list(dict.fromkeys(r["recipe"] for r in right))
    if not names:
        return None
    figure = new_figure(12, 0.6 + 0.36 * max(sum(r["recipe"] == n for r in right) for n in names) + 0.7)
    for number, name in enumerate(names):
        group = [r for r in right if r["recipe"] == name]
        axes = figure.add_subplot(1, len(names), number + 1)
        for place, row in enumerate(group):
            rate = figures.tokens_per_second(row)
            wings = [[rate * (1 - row["seconds"] / row["high"])], [rate * (row["seconds"] / row["low"] - 1)]]
            colour = PEERS if row["peer"] else OTHERS if row["as_filed"] else OURS
            axes.barh(place, rate, xerr=wings, color=colour, error_kw={"lw": 0.8})
            axes.annotate(f" {rate:,.0f}", (0, place), va="center", ha="left", fontsize=7, color="white")
        labels = ["\n".join(textwrap.wrap(f"{r['contender']} ({r['dtype']})", 24)) for r in group]
        axes.set_yticks(range(len(group)), labels, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(_few_ticks())
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlabel("tokens a second", fontsize=8)
        axes.set_title(name, fontsize=10)
    return figure


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def ladder(
    rows: Sequence[figures.Row], ladders: Mapping[str, Sequence[str]], ceilings: figures.Ceilings
) -> Figure | None:
    """Return the steps of a ladder: bars of the measured seconds, and marks where they were predicted to end."""
    rungs = [
        r
        for recipe, names in ladders.items()
        for name in names
        for r in rows
        if (r["recipe"], r["contender"]) == (recipe, name) and r["status"] == "measured"
    ]
    if not rungs:
        return None
    figure = new_figure(9, 4)
    axes = figure.add_subplot()
    for place, row in enumerate(rungs):
        low, high = 1e3 * (row["seconds"] - row["low"]), 1e3 * (row["high"] - row["seconds"])
        label = "measured" if place == 0 else None
        axes.bar(place, 1e3 * row["seconds"], yerr=[[low], [high]], color=OURS, label=label, error_kw={"lw": 0.8})
    marks = [(place, 1e3 * p) for place, r in enumerate(rungs) if (p := figures.predicted(r, ceilings))]
    for number, (place, milliseconds) in enumerate(marks):
        axes.hlines(milliseconds, place - 0.3, place + 0.3, color="#222222", label="" if number else "predicted")
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(rungs)), [r["contender"] for r in rungs], fontsize=8)
    axes.set_ylabel("milliseconds a step", fontsize=8)
    axes.set_title(f"The ladder: {rungs[0]['recipe']}", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, axis="y")
    return figure
