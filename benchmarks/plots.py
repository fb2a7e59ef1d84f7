"""The plots of a result: a roofline with every op on it, and bars of speed-up over the `torch` backend.

Drawn without pyplot: no window system is asked.

Read next: `compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import figures

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
OTHER = ("#7b5aa6", "#b39b2f", "#4c7a34", "#a63d6b", "#6b4f3a")


def draw(result: Result, folder: Path, stem: str) -> list[Path]:
    """Draw what there is to draw and return the files."""
    rows = result["sections"]["ops"]["rows"]
    ceilings = result["sections"].get("ceilings", {}).get("of", {})
    made: list[Path] = []
    for name, figure in (("roofline", roofline(rows, ceilings)), ("speedup", speedups(rows))):
        if figure is not None:
            made.append(folder / f"{stem}-{name}.png")
            figure.savefig(made[-1], dpi=DPI)
    return made


def roofline(rows: list[figures.Row], ceilings: figures.Ceilings) -> Figure | None:
    """Return operations a second over operations a byte: this project's best provider of each case, and the roof."""
    import matplotlib.figure

    provider = "fused" if any(r["provider"] == "fused" and figures.is_right(r) for r in rows) else "torch"
    shown = [r for r in rows if r["provider"] == provider and figures.is_right(r) and r["flops"]]
    copy = ceilings.get("copy", {}).get("rate")
    if not shown or not copy:
        return None
    figure = matplotlib.figure.Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    low = min(r["flops"] / r["bytes"] for r in shown) / 2
    high = max(max(r["flops"] / r["bytes"] for r in shown) * 2, 1e3)
    for name, ceiling in ceilings.items():
        if name.startswith("matrix") and ceiling["rate"]:
            ridge = ceiling["rate"] / copy
            axes.plot([low, ridge, max(high, ridge)], [low * copy, *[ceiling["rate"]] * 2], color="#777777", lw=1)
            axes.annotate(name, (max(high, ridge), ceiling["rate"]), ha="right", va="bottom", fontsize=8)
    for number, op in enumerate(dict.fromkeys(r["op"] for r in shown)):
        for direction, marker in (("forward", "o"), ("forward+backward", "s")):
            of_op = [r for r in shown if r["op"] == op and r["direction"] == direction]
            axes.scatter(
                [r["flops"] / r["bytes"] for r in of_op],
                [r["flops"] / r["seconds"] for r in of_op],
                marker=marker,
                s=26,
                color=f"C{number % 10}",
                alpha=0.85,
                label=op if direction == "forward" else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"Roofline at this run's ceilings: {provider}; circles forward, squares with backward")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.25)
    return figure


def speedups(rows: list[figures.Row]) -> Figure | None:
    """Return bars of speed-up over `torch` with the quartiles' range, for each op's first shape."""
    import matplotlib.figure

    first = {r["op"]: r["shape"] for r in reversed(rows)}
    shown = [r for r in rows if first[r["op"]] == r["shape"] and figures.speedup(r, rows) and r["provider"] != "torch"]
    if not shown:
        return None
    cases = list(dict.fromkeys(figures.key_of(r) for r in shown))
    figure = matplotlib.figure.Figure(figsize=(9, 1 + 0.17 * len(shown) + 0.2 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    others = list(dict.fromkeys(r["provider"] for r in shown if r["provider"] not in COLOURS))
    colours = COLOURS | {name: OTHER[i % len(OTHER)] for i, name in enumerate(others)}
    place, ticks, labelled = 0.0, [], set()
    for case in cases:
        group = [r for r in shown if figures.key_of(r) == case]
        ticks.append((place + (len(group) - 1) / 2, f"{case[0]}, {case[1]}\n{case[3]}"))
        for row in group:
            faster = figures.speedup(row, rows) or 0.0
            wings = [[faster * (1 - row["seconds"] / row["high"])], [faster * (row["seconds"] / row["low"] - 1)]]
            label = None if row["provider"] in labelled else row["provider"]
            labelled.add(row["provider"])
            axes.barh(place, faster, xerr=wings, color=colours[row["provider"]], label=label, error_kw={"lw": 0.8})
            place += 1
        place += 1
    axes.axvline(1, color="#333333", lw=0.8)
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="times as fast as the torch backend")
    axes.legend(fontsize=7)
    return figure
