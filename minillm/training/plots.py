"""PNGs of a run, drawn from its two CSV files: loss, learning rate with gradient norm, throughput.

matplotlib is imported when something is drawn, its figures are made without pyplot: no window system is asked, and no
global state of the caller's changes.

Read next: `../objectives/loss.py`.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minillm.checkpoint.files import write_bytes
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError, warn
from minillm.training.records import METRICS, TIMING, read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[list[float], list[float]]  # steps, values

TRAIN, VALID, ANCHOR, TEXT = "#2f6db3", "#c8501e", "#7a7a7a", "#333333"
WIDTH, HEIGHT, DPI = 7.2, 4.2, 150  # inches, inches, dots per inch
FEW = 8  # points; fewer are drawn one by one and not smoothed
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei")
CJK += ("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo")  # of macOS
CJK += ("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic")  # of Windows
SOME = 8  # characters that a line names
NO_GLYPH = re.compile(r"Glyph (\d+) .* missing from font")  # matplotlib's warning; the number is the character's


def draw_plots(folder: RunFolder | Path, *, anchors: Mapping[str, float] | None = None) -> list[Path]:
    """Draw loss.png, learning_rate.png and throughput.png into a run's folder.

    Args:
        folder: of the run; read are its metrics.csv and timing.csv.
        anchors: name -> loss in nats per target, such as that of a 3-gram model; each is a labelled horizontal line.
    Returns:
        the files that were drawn; one whose CSV has no rows yet is not.
    Raises:
        InputError: a CSV is missing or damaged, or a PNG cannot be written.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    metrics, timing = table(run.metrics_path, METRICS), table(run.timing_path, TIMING)
    name = run.path.resolve().name
    figures: dict[str, Figure] = {}
    if metrics["step"]:
        figures["loss.png"] = loss_figure(name, metrics, anchors or {})
        figures["learning_rate.png"] = learning_rate_figure(name, metrics)
    if timing["step"]:
        figures["throughput.png"] = throughput_figure(name, timing)
    return [save(figure, run.path / file) for file, figure in figures.items()]


def table(path: Path, columns: Sequence[str]) -> dict[str, list[float | None]]:
    """Return the columns of a CSV file.

    Raises:
        InputError: no such file, or not one with these columns.
    """
    found = read_columns(path)
    if missing := [name for name in columns if name not in found]:
        raise InputError(f"{path} has no column {missing[0]}; it needs {', '.join(columns)}")
    return found


def points(columns: Mapping[str, Sequence[float | None]], name: str) -> Points:
    """Return the steps and values of a column, without the rows in which it is empty or not finite.

    >>> points({"step": [1.0, 2.0, 3.0], "loss": [4.0, None, 3.0]}, "loss")
    ([1.0, 3.0], [4.0, 3.0])
    """
    pairs = [
        (step, value)
        for step, value in zip(columns["step"], columns[name], strict=True)
        if step is not None and value is not None and math.isfinite(value)
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, as many before as after it, so that a fall does not lag.

        m_i = mean of v_j over i - h <= j <= min(i + h, n - 1),     h = min(i, max(1, n // 40)), n values, i from 0

    >>> smoothed([1.0, 4.0, 4.0, 10.0])
    [1.0, 3.0, 6.0, 7.0]
    """
    sums = [0.0, *itertools.accumulate(values)]
    reach, means = max(1, len(values) // 40), []
    for i in range(len(values)):
        half = min(reach, i)
        start, stop = i - half, min(i + half + 1, len(values))
        means.append((sums[stop] - sums[start]) / (stop - start))
    return means


def loss_figure(run: str, metrics: Mapping[str, Sequence[float | None]], anchors: Mapping[str, float]) -> Figure:
    """Return the figure of the training loss (faint as it is, strong when smoothed), validation loss and anchors."""
    figure, (axes,) = new_figure(f"{run}: loss", ["loss (nats per target)"])
    steps, values = points(metrics, "loss")
    draw_smoothed(axes, steps, values, "training, one batch", "training, smoothed")
    valid_steps, valid = points(metrics, "valid_loss")
    if valid:
        lowest = min(range(len(valid)), key=valid.__getitem__)
        label = f"validation, lowest {valid[lowest]:.3f} at step {valid_steps[lowest]:,.0f}"
        axes.plot(valid_steps, valid, color=VALID, marker="o", markersize=3.5, linewidth=1.2, label=label, zorder=4)
    legend(axes, "upper right")
    mark_anchors(axes, anchors)
    return figure


def learning_rate_figure(run: str, metrics: Mapping[str, Sequence[float | None]]) -> Figure:
    """Return the figure of the learning rate above that of the gradient norm before clipping."""
    figure, (upper, lower) = new_figure(
        f"{run}: learning rate and gradient norm", ["learning rate", "norm before clipping"]
    )
    steps, rates = points(metrics, "learning_rate")
    upper.plot(steps, rates, color=TRAIN, linewidth=1.8, marker="o" if len(steps) < FEW else "", markersize=4)
    upper.set_ylim(0, max(rates, default=1.0) * 1.08)
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    steps, norms = points(metrics, "grad_norm")
    draw_smoothed(lower, steps, norms, "one batch", "smoothed")
    if norms and min(norms) > 0 and max(norms) > 20 * min(norms):
        lower.set_yscale("log")  # one spike would press all else flat
    elif norms:
        lower.set_ylim(0, max(norms) * 1.08 or 1.0)
    legend(lower, "upper right")
    return figure


def throughput_figure(run: str, timing: Mapping[str, Sequence[float | None]]) -> Figure:
    """Return the figure of tokens per second, above that of MFU where the run has one."""
    shares = points(timing, "mfu")
    labels = ["tokens per second", "MFU (%)"] if shares[1] else ["tokens per second"]
    figure, axes = new_figure(f"{run}: throughput", labels)
    steps, rates = points(timing, "tokens_per_second")
    draw_smoothed(axes[0], steps, rates, "between two rows", "smoothed")
    axes[0].set_ylim(0, max(rates, default=1.0) * 1.15 or 1.0)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend(axes[0], "lower right")
    if shares[1]:
        percent = [100 * share for share in shares[1]]
        draw_smoothed(axes[1], shares[0], percent, "between two rows", "smoothed")
        axes[1].set_ylim(0, max(percent) * 1.15 or 1.0)
    return figure


def new_figure(title: str, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per y label, one above the other over the same steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = HEIGHT if len(labels) == 1 else 1.35 * HEIGHT
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=12, color=TEXT, parse_math=False, fontfamily=families())
    panels: list[Axes] = list(figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, label in zip(panels, labels, strict=True):
        axes.set_ylabel(label, color=TEXT)
        style(axes)
        axes.margins(x=0.02)
    figure.align_ylabels()
    panels[-1].set_xlabel("optimiser step", color=TEXT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panels[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, panels


def style(axes: Axes) -> None:
    """Give a panel its grid, its two spines and its small ticks."""
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=TEXT, labelsize=9)


@functools.cache
def families() -> list[str]:
    """Return the font families for texts of the user's: matplotlib's own, then those for CJK that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK if name in installed)]


def draw_smoothed(axes: Axes, steps: Sequence[float], values: Sequence[float], raw: str, smooth: str) -> None:
    """Draw values faintly and their running mean above them; few values as points."""
    if len(values) < FEW:
        axes.plot(steps, values, color=TRAIN, marker="o", markersize=4, linewidth=1.2, label=raw)
        return
    axes.plot(steps, values, color=TRAIN, alpha=0.35, linewidth=0.8, label=raw)
    axes.plot(steps, smoothed(values), color=TRAIN, linewidth=1.8, label=smooth, zorder=3)


def mark_anchors(axes: Axes, anchors: Mapping[str, float]) -> None:
    """Draw each anchor as a line across, its name and value beside it at the right; names are kept from overlapping."""
    shown = sorted(((name, value) for name, value in anchors.items() if math.isfinite(value)), key=lambda pair: pair[1])
    if not shown:
        return
    for _, value in shown:
        axes.axhline(value, color=ANCHOR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    least = 0.05 * (high - low)  # height of a line of text
    place = -math.inf
    for name, value in shown:
        place = max(value, place + least)
        axes.annotate(
            f"{name} {value:.2f}",
            xy=(1.0, value),
            xytext=(1.015, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            fontsize=8.5,
            color=ANCHOR,
            va="center",
            annotation_clip=False,
            parse_math=False,
        )


def legend(axes: Axes, place: Literal["upper right", "lower right"]) -> None:
    """Draw a legend where there is more than one thing to tell apart; on white, so that lines behind it do not show."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        box = axes.legend(handles, labels, loc=place, fontsize=9, labelcolor=TEXT, edgecolor="none", framealpha=0.9)
        box.set_zorder(5)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; return its path. What no font here has is said."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(content, format="png", dpi=DPI)
    write_bytes(path, content.getvalue())
    missing: dict[str, None] = {}  # a dict keeps the order
    for warning in caught:
        if found := NO_GLYPH.match(str(warning.message)):
            character = chr(int(found[1]))
            if unicodedata.category(character) != "Cc":  # control characters are in no font, and none to print
                missing[character] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        _say_boxes("".join(missing))
    return path


@functools.cache  # once, and not for each figure with the run's name in it
def _say_boxes(characters: str) -> None:
    """Say that no font has these characters."""
    some = characters if len(characters) <= SOME else f"{characters[:SOME]}…"
    warn(f"no font here has {some}: figures show boxes instead; install one that has, such as Noto Sans CJK")
