"""A run's pictures: which are drawn, what is in them, and that matplotlib is fetched only then."""

import math
import struct
import subprocess
import sys

import pytest

from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training.plots import DPI, WIDTH, draw_plots, loss_figure, points, smoothed, table, throughput_figure
from minillm.training.records import METRICS, Records

ALL = ["loss.png", "learning_rate.png", "throughput.png"]


def write_run(folder: RunFolder, steps: int, *, mfu: float | None = 0.4) -> None:
    folder.create()
    with Records(folder, step=0) as records:
        for step in range(1, steps + 1):
            valid = {"loss": 4.0 - step / steps} if step % 5 == 0 else {}
            norm = math.inf if step == 3 else 1.0 + step % 2
            records.metrics(
                step=step, tokens=step, loss=5.0 - step / steps, learning_rate=1e-3, grad_norm=norm, valid=valid
            )
            records.timing(step=step, seconds=step, tokens_per_second=1000.0, mfu=mfu)


@pytest.mark.parametrize("mfu", [0.4, None], ids=["mfu", "no-mfu"])
@pytest.mark.parametrize("steps", [1, 3, 60])
def test_three_pngs_of_the_stated_size(tmp_path, steps, mfu):
    folder = RunFolder(tmp_path / r"a_run $\bad$ 莎士比亚")
    write_run(folder, steps, mfu=mfu)
    drawn = draw_plots(folder if mfu else folder.path, anchors={"uniform": 8.3, "3-gram": 4.4, r"$\bad$": 4.39})
    assert drawn == [folder.path / name for name in ALL]
    for path in drawn:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and content.rstrip().endswith(b"IEND\xaeB`\x82")
        assert struct.unpack(">I", content[16:20])[0] == round(WIDTH * DPI)


def test_characters_without_a_font_are_named_once_for_all_figures(tmp_path, capfd):
    folder = RunFolder(tmp_path / "a\U000f1234b\x1b[31m")  # of a private plane: no font has it; and red, in a terminal
    write_run(folder, 8)
    draw_plots(folder)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "minillm: no font here has \U000f1234: figures show boxes instead; install one that has, such as Noto Sans CJK"
    ]


def test_equal_csvs_give_equal_bytes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 20)
    first = [path.read_bytes() for path in draw_plots(folder)]
    assert [path.read_bytes() for path in draw_plots(folder)] == first


def test_the_loss_figure_says_what_it_shows(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 60)
    figure = loss_figure("run", table(folder.metrics_path, METRICS), {"3-gram": 3.5, "none": math.nan})
    (axes,) = figure.axes
    assert figure.get_suptitle() == "run: loss"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimiser step", "loss (nats per target)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training, one batch", "training, smoothed", "validation, lowest 3.000 at step 60",
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["3-gram 3.50"]
    raw, _, valid, anchor = axes.get_lines()
    assert list(raw.get_ydata())[-1] == 4.0 and list(valid.get_xdata()) == list(range(5, 61, 5))
    assert set(anchor.get_ydata()) == {3.5}


def test_names_of_near_anchors_do_not_overlap(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 60)
    anchors = {f"{n}-gram": 4.0 + n / 1000 for n in range(4)}
    figure = loss_figure("run", table(folder.metrics_path, METRICS), anchors)
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 4 and all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:], strict=False))


def test_mfu_has_a_panel_in_percent_only_where_it_is_known():
    timing = {"step": [1.0, 2.0], "seconds": [1.0, 2.0], "tokens_per_second": [10.0, 20.0], "mfu": [0.25, None]}
    upper, lower = throughput_figure("run", timing).axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("tokens per second", "MFU (%)")
    assert list(lower.get_lines()[0].get_ydata()) == [25.0]
    assert len(throughput_figure("run", timing | {"mfu": [None, None]}).axes) == 1


def test_points_leave_out_what_cannot_be_drawn():
    assert points({"step": [1.0, 2.0, 3.0, 4.0], "x": [None, math.inf, math.nan, 2.0]}, "x") == ([4.0], [2.0])


@pytest.mark.parametrize("n", [0, 1, 2, 79, 400])
def test_smoothing_keeps_a_straight_line_where_its_window_is_whole(n):
    line = [3.0 - 0.5 * i for i in range(n)]
    reach = max(1, n // 40)
    assert len(smoothed(line)) == n
    assert smoothed(line)[: n - reach] == pytest.approx(line[: n - reach])


def test_a_run_without_rows_has_no_pictures(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 0)
    assert draw_plots(folder) == []


@pytest.mark.parametrize(
    "text, words",
    [(None, "cannot read .*metrics.csv"), ("", "has no column step"), ("step,loss\n1,2\n", "has no column tokens")],
    ids=["missing", "empty", "other"],
)
def test_csvs_that_are_not_a_runs_are_one_line(tmp_path, text, words):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 2)
    folder.metrics_path.unlink() if text is None else folder.metrics_path.write_text(text)
    with pytest.raises(InputError, match=words):
        draw_plots(folder)


def test_a_png_that_cannot_be_written_leaves_the_old_one(tmp_path, file_size_limit):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 5)
    (path, *_) = draw_plots(folder)
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot write .*loss.png: File too large"), file_size_limit(1000):
        draw_plots(folder, anchors={"other": 4.0})
    assert path.read_bytes() == before and sorted(p.name for p in folder.path.glob("*.png")) == sorted(ALL)


def test_matplotlib_is_imported_only_to_draw_and_never_pyplot(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write_run(folder, 2)
    code = f"""
import sys, pathlib
from minillm.training.plots import draw_plots
assert "matplotlib" not in sys.modules
draw_plots(pathlib.Path({str(folder.path)!r}))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
