"""What attention maps look like: lines that fit a terminal, and figures with each weight in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minillm.attention_maps import Attended
from minillm.attention_shown import attention_figure, attention_lines
from minillm.explain_shown import visible, width_of
from minillm.reading import Reading


def attended(pieces, maps, heads=None) -> Attended:
    """Return maps of a text."""
    maps = {layer: np.asarray(P, dtype=np.float32) for layer, P in maps.items()}
    tokens = torch.zeros(1, len(pieces), dtype=torch.int64)
    count = len(next(iter(maps.values())))
    return Attended(reading=Reading(tokens=tokens, pieces=tuple(pieces)), maps=maps, heads=tuple(heads or range(count)))


def random_maps(H, T, S, pieces) -> Attended:
    weights = np.random.default_rng(0).dirichlet(np.ones(S), size=(H, T))
    return attended([pieces[n % len(pieces)] for n in range(T)], {3: weights}, heads=range(2, 2 + H))


WEIGHTS = [[[0.7, 0.3, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]], [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]]


def test_lines_have_the_weight_of_itself_and_the_strongest_others():
    assert attention_lines(attended([" a", " bcd", "\n"], {3: WEIGHTS})) == [
        "layer 3, mean of 2 heads: each token, its weight of itself, the strongest others",
        "  0 a     0.60    1 bcd  0.40",
        "  1 bcd   0.20    2 '\\n' 0.70    0 a    0.10",
        "  2 '\\n'  1.00",
    ]


def test_heads_that_were_chosen_have_lists_of_their_own():
    lines = attention_lines(attended([" a", " b", " c"], {0: WEIGHTS, 5: WEIGHTS}, heads=[4, 1]), each_head=True)
    heads = [line.partition(":")[0] for line in lines if line.startswith("layer")]
    assert heads == ["layer 0, head 4", "layer 0, head 1", "layer 5, head 4", "layer 5, head 1"]
    assert lines[1] == "  0 a  0.70    1 b 0.30" and lines[5] == "  0 a  0.50    1 b 0.50"


def test_a_learned_prefix_stands_before_the_pieces_and_is_not_counted():
    _, line = attention_lines(attended(["a"], {0: [[[0.6, 0.3, 0.1]]]}))
    assert line == "  0 a         0.10      prefix 0 0.60      prefix 1 0.30"


@pytest.mark.parametrize(
    "T, S, pieces",
    [
        (1, 1, [" a"]),
        (12, 12, [" internationalisation", " a"]),
        (120, 125, [" internationalisation", "电影电影电影电影", "\n"]),
        (1001, 1001, [" internationalisation"]),
    ],
    ids=["one", "long-words", "prefix-and-ideographs", "four-digits"],
)
def test_lines_fit_a_terminal_and_stand_in_columns(T, S, pieces):
    head, *lines = attention_lines(random_maps(2, T, S, pieces))
    assert len(lines) == T and all(width_of(line) <= 100 for line in (head, *lines))
    assert len({width_of(line[: line.index("0.")] if "0." in line else line) for line in lines}) == 1


@pytest.mark.parametrize(
    "H, T, S",
    [(1, 1, 1), (5, 4, 6), (3, 40, 40), (2, 70, 70)],
    ids=["one", "with-prefix", "long", "too-long-for-names"],
)
def test_each_head_has_a_panel_with_its_weights(H, T, S):
    maps = random_maps(H, T, S, [" some", " more"])
    figure = attention_figure("run", maps, 3)
    panels = [axes for axes in figure.axes if "head" in axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"layer 3, head {head}" for head in maps.heads]
    figure.canvas.draw()
    for axes, expected in zip(panels, maps.maps[3], strict=True):
        (image,) = axes.get_images()
        assert np.array_equal(np.asarray(image.get_array()), expected)
        assert image.get_clim() == (0.0, maps.maps[3].max())
    named = [text.get_text() for text in panels[0].get_yticklabels()]
    if S > 64:
        assert "0" in named and "some" not in named
        return
    assert named == [visible(piece) for piece in maps.reading.pieces]
    assert [text.get_text() for text in panels[-1].get_xticklabels()][S - T :] == named


@pytest.mark.parametrize("T", [2, 20, 64])
def test_names_of_tokens_do_not_overlap(T):
    """Measured as drawn: below each name is the next."""
    figure = attention_figure("run", random_maps(4, T, T, [" internationalisation", " more"]), 3)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in zip(boxes, boxes[1:], strict=False))  # to a dot


def test_all_layers_of_a_text_have_one_scale():
    maps = attended(["a", "b"], {0: [[[0.9, 0.1], [0.5, 0.5]]], 1: [[[0.4, 0.6], [0.5, 0.5]]]})
    limits = {attention_figure("run", maps, layer).axes[0].get_images()[0].get_clim() for layer in (0, 1)}
    assert limits == {(0.0, np.float32(0.9))}
