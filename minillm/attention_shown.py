"""Attention maps for the eye: lines of text, and PNGs.

    attention-layer-00.png     a panel for each head: row i shows what token i looks at

Drawn as the plots of `training/plots.py`, without pyplot.

Read next: `loading.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm.attention_maps import Attended
from minillm.explain_shown import visible, width_of
from minillm.finetune.report_plots import shortened
from minillm.training.plots import TEXT, TRAIN, families

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 100  # columns of a line
WIDEST = 13  # columns of a piece on a line
MOST = 4  # tokens that are named for each token
LEAST = 0.005  # what is rounded to 0.00 is not named
NAMED = 64  # keys; with more, tokens are numbered beside a map, not written
BESIDE, WIDTH = 4, 16.0  # heads beside each other at most, and inches that they may take; two always stand together
ROW = 0.135  # inches of a token: its name is 7 points, 0.1 inches, high
SHORT = 16  # characters of a token beside a map


def attention_lines(attended: Attended, *, each_head: bool = False) -> list[str]:
    """Return for each layer and token how much of its attention stays with itself, and which others get the most.

        12 film       0.10    11 fine 0.61    10 a    0.12
                      of itself    the strongest others, tokens counted from 0; a learned prefix has no numbers

    Args:
        each_head: a list for each head; else one for the mean of the heads.
    """
    lines = []
    for layer, weights in attended.maps.items():
        shown = dict(zip((f"head {head}" for head in attended.heads), weights, strict=True))
        if not each_head and len(weights) > 1:
            shown = {f"mean of {len(weights)} heads": weights.mean(axis=0)}
        for name, P in shown.items():
            lines += [f"layer {layer}, {name}: each token, its weight of itself, the strongest others"]
            lines += _token_lines(attended.reading.pieces, P)
    return lines


def _token_lines(pieces: Sequence[str], P: NDArray) -> Iterator[str]:
    """Yield a line for each token of a map (T, S)."""
    (T, S), keys = P.shape, key_names(pieces, P.shape[1])
    width = min(WIDEST, max(map(width_of, keys)))
    digits = len(str(T - 1))
    named = [f"{'' if key < S - T else key - (S - T):>{digits}} {padded(keys[key], width)}" for key in range(S)]
    room = min(MOST, (ACROSS - len("  ") - digits - 1 - width - 6) // (4 + digits + 1 + width + 5))
    for token, row in enumerate(P):
        own = S - T + token
        order = [key for key in np.argsort(-row, kind="stable") if key != own and row[key] >= LEAST][:room]
        others = "".join(f"    {named[key]} {row[key]:.2f}" for key in order)
        yield f"  {named[own]}  {row[own]:.2f}{others}"


def key_names(pieces: Sequence[str], count: int) -> list[str]:
    """Return the names of S keys as they can be read: those of a learned prefix, where there is one, then the pieces.

    >>> key_names(["a"], 3)
    ['prefix 0', 'prefix 1', 'a']
    """
    return [*(f"prefix {n}" for n in range(count - len(pieces))), *map(visible, pieces)]


def padded(text: str, width: int) -> str:
    """Return a text that takes `width` columns: cut, or with spaces behind it.

    >>> padded("attention", 6), padded("ab", 6), padded("电影电影", 6)
    ('atten…', 'ab    ', '电影… ')
    """
    if width_of(text) > width:
        while width_of(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - width_of(text))


def attention_figure(run: str, attended: Attended, layer: int) -> Figure:
    """Return the figure of a layer: a panel for each head, query tokens down, keys across, colour by weight.

    Args:
        run: what the title begins with.
        layer: one of those in `attended.maps`.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    weights = attended.maps[layer]  # (H, T, S)
    H, T, S = weights.shape
    named = S <= NAMED
    side = max(2.0, ROW * S) if named else 4.0  # inches of a panel
    across = min(H, max(2, min(BESIDE, int(WIDTH / side))))
    down = -(-H // across)
    words = [shortened(word, SHORT) for word in key_names(attended.reading.pieces, S)]
    margin = 0.075 * max(map(width_of, words)) + 0.2 if named else 0.35  # inches of the pieces beside it
    size = across * (side + 0.15) + margin + 0.9, down * (side * T / S + 0.35) + margin + 0.5
    figure = Figure(figsize=(max(size[0], 4.0), size[1]), layout="constrained")
    figure.suptitle(
        f"{shortened(run)}: attention of layer {layer}",
        fontsize=12,
        color=TEXT,
        parse_math=False,
        fontfamily=families(),
    )
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    colours = LinearSegmentedColormap.from_list("weights", ["#ffffff", TRAIN, "#10243f"])
    most = max(float(P.max()) for P in attended.maps.values())  # one scale for all layers that are shown
    image = None
    for place, axes in enumerate(panels.flat):
        if place >= H:
            axes.set_visible(False)
            continue
        edges = (T - S - 0.5, T - 0.5, T - 0.5, -0.5)  # a prefix stands before token 0
        image = axes.imshow(weights[place], cmap=colours, vmin=0.0, vmax=most, extent=edges)
        axes.set_title(f"layer {layer}, head {attended.heads[place]}", fontsize=9, color=TEXT)
        axes.tick_params(colors=TEXT, labelsize=7, length=0)
        axes.spines[:].set_color("#999999")
        if named:
            style = {"fontfamily": families(), "parse_math": False}
            axes.set_xticks(range(T - S, T), words, rotation=90, **style)
            axes.set_yticks(range(T), words[S - T :], **style)
        if place + across >= H:
            axes.tick_params(labelbottom=True)  # the last panel of a column, also where the row below is not full
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=min(0.9, 5.0 / size[1]), aspect=30)
    bar.set_label("attention weight", color=TEXT, fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=TEXT, labelsize=8)
    figure.supylabel("token that looks", fontsize=9, color=TEXT)
    figure.supxlabel("token that is looked at", fontsize=9, color=TEXT)
    return figure
