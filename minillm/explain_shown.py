"""Explanations for the eye: lines of text, and a PNG.

    attribution.png     the text, each piece on its colour: blue speaks for the answer, red against it

Drawn as the plots of `training/plots.py`, without pyplot.

Read next: `attention_maps.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minillm.explain import Explanation
from minillm.training.plots import TEXT, TRAIN, VALID, families

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR = 20  # characters of the longest bar
COLUMNS = 84  # characters of a row in the strip
LINE = 0.34  # inches of a row
CHARACTER = 0.086  # inches of a character, at 9 points


def attribution_lines(explanation: Explanation) -> list[str]:
    """Return an answer, the check of its sum, and a line per piece with its signed score and a bar."""
    found = explanation.attribution
    lines = [_answer(explanation), *_check(explanation)]
    longest = max((abs(score) for score in found.scores), default=0.0) or 1.0
    for piece, score in zip(explanation.reading.pieces, found.scores, strict=True):
        bar = round(BAR * abs(score) / longest) * ("+" if score > 0 else "-")
        lines.append(f"  {score:+9.4f}  {visible(piece):<24} {bar}".rstrip())
    return lines


def _answer(explanation: Explanation) -> str:
    """Return what is said, and how much speaks for it."""
    value = explanation.attribution.value
    if explanation.label is None:
        return f"value {value:.4f}"
    return f"{explanation.label}: probability {explanation.probability:.4f}, log-odds {value:+.4f} nats"


def _check(explanation: Explanation) -> list[str]:
    """Return what the scores sum to and whether that is what it should be."""
    found = explanation.attribution
    name = found.method.replace("_", " ")
    if found.gap is None or found.baseline_value is None:
        return [f"{name}: nothing ties the sum of the scores to the answer"]
    added = found.value - found.baseline_value
    line = (
        f"{name}, {found.steps} steps: the scores sum to {found.scores.sum():+.4f}, the text adds {added:+.4f} to the "
        f"empty one's {found.baseline_value:+.4f}; gap {found.gap:+.4f}"
    )
    if found.complete():
        return [line]
    return [line, "the gap is too large for these scores to be believed: more steps did not close it"]


def visible(piece: str) -> str:
    """Return a piece as it can be read on a line: without the space before it, and what else is no character quoted.

    >>> [visible(piece) for piece in (" cat", "ing", " ", "\\n")]
    ['cat', 'ing', "' '", "'\\\\n'"]
    """
    bare = piece.removeprefix(" ")
    return bare if bare and bare.isprintable() and not bare.isspace() else repr(piece)


def width_of(text: str) -> int:
    """Return how many columns a text takes in a font of one width; ideographs take two.

    >>> width_of("ab"), width_of("电影")
    (2, 4)
    """
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def attribution_figure(title: str, explanation: Explanation) -> Figure:
    """Return the figure of a text whose pieces stand on the colour of their score: blue for the answer, red against."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    words = [visible(piece) for piece in explanation.reading.pieces]
    places = laid_out([width_of(word) + 1 for word in words], COLUMNS)
    rows = 1 + max((row for row, _ in places), default=0)
    columns = max((column + width_of(word) + 1 for (_, column), word in zip(places, words, strict=True)), default=1)
    across = max(columns * CHARACTER, 4.5)  # inches
    height = rows * LINE + 1.3
    figure = Figure(figsize=(across + 0.4, height))
    figure.suptitle(
        title, fontsize=12, color=TEXT, parse_math=False, fontfamily=families(), y=1 - 0.1 / height, va="top"
    )
    axes = figure.add_axes((0.2 / (across + 0.4), 0.85 / height, across / (across + 0.4), rows * LINE / height))
    axes.set_xlim(0, across / CHARACTER)
    axes.set_ylim(rows, 0)
    axes.set_axis_off()
    colours = LinearSegmentedColormap.from_list("signed", [VALID, "#ffffff", TRAIN])
    longest = float(np.abs(explanation.attribution.scores).max(initial=0.0)) or 1.0
    norm = Normalize(-longest, longest)
    for (row, column), word, score in zip(places, words, explanation.attribution.scores, strict=True):
        wide = width_of(word) + 0.7
        axes.add_patch(Rectangle((column, row + 0.08), wide, 0.84, color=colours(norm(score)), linewidth=0))
        colour = "white" if abs(score) > 0.7 * longest else TEXT
        middle = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
        axes.text(
            column + wide / 2, row + 0.5, word, parse_math=False, fontfamily=["DejaVu Sans Mono", *families()], **middle
        )
    bar = figure.add_axes((0.5 - 1.6 / (across + 0.4), 0.5 / height, 3.2 / (across + 0.4), 0.12 / height))
    figure.colorbar(ScalarMappable(norm, colours), cax=bar, orientation="horizontal")
    bar.tick_params(colors=TEXT, labelsize=8)
    bar.set_xlabel("score" if explanation.label is None else "score (nats of log-odds)", fontsize=9, color=TEXT)
    return figure


def laid_out(widths: Sequence[int], columns: int) -> list[tuple[int, int]]:
    """Return (row, column) of words of some widths, in rows of at most so many columns; a wider word has its own row.

    >>> laid_out([4, 4, 9, 2], 9)
    [(0, 0), (0, 4), (1, 0), (2, 0)]
    """
    places, row, column = [], 0, 0
    for width in widths:
        if column and column + width > columns:
            row, column = row + 1, 0
        places.append((row, column))
        column += width
    return places
