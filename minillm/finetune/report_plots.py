r"""PNGs of a report: confusion matrix, reliability, learning curves, predicted against true numbers.

They are drawn as those of `minillm/training/plots.py`, with its colours and its `save`: without pyplot, and matplotlib
is imported when something is drawn.

Read next: `regularisers/r_drop.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm.finetune.calibration import Reliability
from minillm.training.config import LOWER_IS_BETTER
from minillm.training.plots import (
    ANCHOR,
    HEIGHT,
    TEXT,
    TRAIN,
    VALID,
    WIDTH,
    draw_smoothed,
    families,
    legend,
    new_figure,
    points,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 20  # classes; with more, cells are too small for their numbers
NAMED = 60  # classes; with more, names would lie over each other
SHORT = 24  # characters of a name
UNBOUNDED = (*LOWER_IS_BETTER, "best_threshold")  # figures that do not go with those in [-1, 1]
CURVES = (TRAIN, VALID, "#3a8a4d", "#8a4fa0", "#a08020")


def shortened(name: str, length: int = SHORT) -> str:
    """Return a name that is not longer than `length` characters, on one line.

    >>> shortened("a very long name", 8)
    'a very …'
    """
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def confusion_figure(title: str, confusion: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Return the figure of a confusion matrix.

    A row is a true class. Colour is the share of the row, so that rare classes are seen as well; the number in a cell
    is of examples. A row without examples is grey.

    Args:
        confusion: (K, K), examples by target (row) and prediction (column).
        names: of the K classes.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    K = len(names)
    labels = [shortened(name) for name in names] if K <= NAMED else []
    small = 9 if K <= NUMBERED else 6  # points
    longest = max(map(len, labels), default=3) * small * 0.0095  # inches
    side = min(max(2.8, 0.42 * K), 9.5)  # inches
    level = longest < side / K  # names fit beside each other
    figure = Figure(figsize=(side + longest + 1.6, side + (0.3 if level else longest) + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=12, color=TEXT, parse_math=False, fontfamily=families())
    axes = figure.subplots()
    support = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.where(support > 0, confusion / np.maximum(support, 1), np.nan))
    colours = LinearSegmentedColormap.from_list("shares", ["#ffffff", TRAIN]).with_extremes(bad="#dddddd")
    image = axes.imshow(shares, cmap=colours, vmin=0.0, vmax=1.0)
    axes.tick_params(colors=TEXT, labelsize=small, length=0)
    axes.spines[:].set_color("#999999")
    if labels:
        axes.set_xticks(range(K), labels, parse_math=False, fontfamily=families(), rotation=0 if level else 90)
        axes.set_yticks(range(K), labels, parse_math=False, fontfamily=families())
    numbers = "" if labels else ", as numbered in report.json"
    axes.set_xlabel(f"predicted{numbers}", color=TEXT)
    axes.set_ylabel(f"true{numbers}", color=TEXT)
    if K <= NUMBERED:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[row, column] > 0.55 else TEXT
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8.5, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, aspect=25)
    bar.set_label("share of the true class", color=TEXT)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=TEXT, labelsize=9)
    return figure


def reliability_figure(title: str, panels: Mapping[str, Reliability], *, multi_label: bool = False) -> Figure:
    """Return the figure of accuracy by confidence above the number of predictions in each bin, a column for each panel.

    Args:
        panels: heading -> bins, such as those before and after a temperature.
        multi_label: confidence is that in a label being there, and accuracy how often it is.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH if len(panels) > 1 else 0.6 * WIDTH, HEIGHT), layout="constrained")
    figure.suptitle(title, fontsize=12, color=TEXT, parse_math=False, fontfamily=families())
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for (upper, lower), (heading, bins) in zip(grid.T, panels.items(), strict=True):
        width, filled = np.diff(bins.edges), bins.counts > 0
        left = bins.edges[:-1]
        upper.plot([0, 1], [0, 1], color=ANCHOR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
        upper.bar(left[filled], bins.accuracy[filled], width[filled], align="edge", color=TRAIN, alpha=0.35, zorder=1)
        points_of = bins.confidence[filled], bins.accuracy[filled]
        upper.plot(*points_of, color=TRAIN, marker="o", markersize=4, linewidth=1.4, clip_on=False, zorder=3)
        upper.set_title(f"{heading}: ECE {bins.ece:.3f}", fontsize=10, color=TEXT)
        lower.bar(left, bins.counts, width, align="edge", color=ANCHOR, alpha=0.6)
        lower.set_xlabel(
            "probability of the label" if multi_label else "probability of the predicted class", color=TEXT
        )
        for axes in (upper, lower):
            style(axes)
            axes.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    grid[0, 0].set_ylabel("share that is there" if multi_label else "share that is right", color=TEXT)
    grid[1, 0].set_ylabel("number", color=TEXT)
    figure.align_ylabels()
    return figure


def learning_curves_figure(
    title: str, metrics: Mapping[str, Sequence[float | None]], best: int | None = None
) -> Figure:
    """Return the figure of the losses of training and validation, above the validation's other figures.

    Args:
        metrics: columns of metrics.csv; of those of the validation, figures in [-1, 1] are drawn.
        best: step of the chosen checkpoint; None: it is not marked.
    """
    names = [
        name
        for name in metrics
        if name.startswith("valid_") and name.removeprefix("valid_") not in UNBOUNDED and points(metrics, name)[1]
    ]
    figure, panels = new_figure(title, ["loss per target", "validation"] if names else ["loss per target"])
    draw_smoothed(panels[0], *points(metrics, "loss"), "training, one batch", "training, smoothed")
    draw_curve(panels[0], *points(metrics, "valid_loss"), VALID, "validation")
    for name, colour in zip(names, CURVES * (1 + len(names) // len(CURVES)), strict=False):
        draw_curve(panels[-1], *points(metrics, name), colour, name.removeprefix("valid_").replace("_", " "))
    for axes in panels:
        if best is not None:
            axes.axvline(
                best, color=ANCHOR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1, label=f"chosen, step {best:,}"
            )
    legend(panels[0], "upper right")
    if names:
        legend(panels[1], "lower right")
    return figure


def draw_curve(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    """Draw values with a mark at each."""
    axes.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label, zorder=4)


def regression_figure(title: str, targets: NDArray, said: NDArray) -> Figure:
    """Return the figure of predicted numbers (N,) against true ones (N,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(HEIGHT + 0.8, HEIGHT + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=12, color=TEXT, parse_math=False, fontfamily=families())
    axes = figure.subplots()
    style(axes)
    low, high = float(min(targets.min(), said.min())), float(max(targets.max(), said.max()))
    margin = 0.04 * (high - low) or 1.0
    axes.plot([low, high], [low, high], color=ANCHOR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
    axes.scatter(targets, said, color=TRAIN, s=12, alpha=max(0.15, min(0.7, 200 / len(said))), linewidths=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_aspect("equal")
    axes.set_xlabel("true", color=TEXT)
    axes.set_ylabel("predicted", color=TEXT)
    return figure
