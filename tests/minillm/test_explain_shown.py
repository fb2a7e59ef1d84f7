"""What an explanation looks like: lines that say whether to believe them, and figures with every piece in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from minillm.explain import Attribution, Explanation
from minillm.explain_shown import (
    attribution_figure,
    attribution_lines,
    laid_out,
    visible,
)
from minillm.reading import Reading
from minillm.training.plots import TRAIN, VALID

PIECES = ("[CLS]", " fine", " film", "\n", "[SEP]")


def explanation(
    scores=(0.0, 1.5, -0.5, 0.0, 0.0), *, method="integrated_gradients", gap=0.0, label="good"
) -> Explanation:
    """Return an explanation whose scores miss their sum by `gap`."""
    found = np.array(scores)
    return Explanation(
        label=label,
        probability=None if label is None else 0.75,
        reading=Reading(tokens=torch.zeros(1, len(found), dtype=torch.int64), pieces=PIECES[: len(found)]),
        attribution=Attribution(
            method=method,
            scores=found,
            value=2.0,
            baseline_value=2.0 - found.sum() + gap if method == "integrated_gradients" else None,
            steps=32 if method == "integrated_gradients" else None,
        ),
    )


def test_every_piece_has_its_signed_score_and_a_bar_of_its_length():
    lines = attribution_lines(explanation())
    assert lines[0] == "good: probability 0.7500, log-odds +2.0000 nats"
    assert [line.split() for line in lines[-5:]] == [
        ["+0.0000", "[CLS]"],
        ["+1.5000", "fine", "+" * 20],
        ["-0.5000", "film", "-" * 7],
        ["+0.0000", "'\\n'"],
        ["+0.0000", "[SEP]"],
    ]


def test_the_sum_is_shown_and_a_gap_is_told():
    good, bad = attribution_lines(explanation(gap=0.005)), attribution_lines(explanation(gap=0.02))
    check = "32 steps: the scores sum to +1.0000, the text adds +0.9950 to the empty one's +1.0050; gap +0.0050"
    assert good[1] == f"integrated gradients, {check}"
    assert len(bad) == len(good) + 1
    assert bad[2] == "the gap is too large for these scores to be believed: more steps did not close it"


def test_a_method_without_a_sum_says_so():
    assert "nothing ties the sum of the scores to the answer" in attribution_lines(explanation(method="occlusion"))[1]


def test_a_number_has_no_probability():
    assert attribution_lines(explanation(label=None))[0] == "value 2.0000"


def test_scores_that_are_all_zero_have_no_bars():
    assert attribution_lines(explanation((0.0, 0.0)))[-1].split() == ["+0.0000", "fine"]


def test_the_strip_has_each_piece_on_the_colour_of_its_score():
    figure = attribution_figure("t", explanation())
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [visible(piece) for piece in PIECES]
    colours = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert colours[1] == pytest.approx(to_rgb(TRAIN), abs=0.01)  # the highest
    assert colours[0] == pytest.approx((1, 1, 1), abs=0.01)  # nothing
    red, green, blue = colours[2]
    assert red > blue and red > green  # a third of the way to VALID
    assert to_rgb(VALID)[0] > to_rgb(VALID)[2]
    for patch, text in zip(axes.patches, axes.texts, strict=True):
        x, y = text.get_position()
        assert patch.get_x() < x < patch.get_x() + patch.get_width() and patch.get_y() < y < patch.get_y() + 1
    figure.canvas.draw()


@pytest.mark.parametrize("count", [1, 400])
def test_a_strip_of_any_length_stays_inside_its_figure(count):
    words = tuple(f" word{n}" for n in range(count))
    long = Explanation(
        label="good",
        probability=0.5,
        reading=Reading(tokens=torch.zeros(1, count, dtype=torch.int64), pieces=words),
        attribution=Attribution(method="occlusion", scores=np.linspace(-1, 1, count), value=0.0),
    )
    figure = attribution_figure("t", long)
    axes = figure.axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= p.get_x() and p.get_x() + p.get_width() <= right for p in axes.patches)
    assert all(top <= p.get_y() and p.get_y() + p.get_height() <= bottom for p in axes.patches)


def test_no_two_words_of_a_row_overlap():
    widths = [5, 3, 90, 84, 1, 40, 40, 4]
    places = laid_out(widths, 84)
    ends: dict[int, int] = {}
    for (row, column), width in zip(places, widths, strict=True):
        assert column == ends.get(row, 0)
        ends[row] = column + width
        assert column == 0 or ends[row] <= 84
