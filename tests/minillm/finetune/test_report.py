"""What a report says, against the figures that it is made of; and that no odd split makes it fall over."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.finetune.baselines import Examples, majority
from minillm.finetune.calibration import calibrated, fit_temperature, reliability
from minillm.finetune.metrics import decide, fit_thresholds, losses, measure
from minillm.finetune.predictions import Predictions
from minillm.finetune.report import Contender, Report, calibrate, mistakes, report_table, write_report
from minillm.finetune.report_markdown import cell, markdown, verdict
from minillm.finetune.report_plots import (
    confusion_figure,
    learning_curves_figure,
    regression_figure,
    reliability_figure,
)

NAMES = ("bad", "good", "so | so")


def drawn(N=60, K=3, task="single_label", seed=0, scale=2.0) -> Predictions:
    """Return overconfident predictions with texts; their targets are drawn from the logits before the scale."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.standard_normal((N, K))
    texts = tuple(f"text {n}" for n in range(N))
    if task == "regression":
        said, targets = z[:, :1].astype(np.float32), (z[:, 0] + rng.standard_normal(N)).astype(np.float32)
        return Predictions(task=task, logits=said, targets=targets, label_names=(), texts=texts)
    noise = rng.gumbel(size=(N, K)) if task == "single_label" else rng.logistic(size=(N, K))
    targets = (z + noise).argmax(axis=1) if task == "single_label" else (z + noise > 0).astype(np.int64)
    names = NAMES if K == 3 else tuple(f"class {k}" for k in range(K))
    return Predictions(
        task=task, logits=(scale * z).astype(np.float32), targets=targets, label_names=names, texts=texts
    )


def report(task="single_label", splits=("valid", "test"), best_by="accuracy", **more: Any) -> Report:
    """Return a report of a model beside the majority."""
    said = {split: drawn(task=task, seed=n) for n, split in enumerate(splits)}
    rows = {split: Examples(texts=p.texts or (), targets=np.asarray(p.targets)) for split, p in said.items()}
    simple = majority(task, rows["valid"], said["valid"].label_names)
    contenders = [
        Contender(name="this model", splits=said),
        Contender(name="majority", note=simple.note, splits={s: simple.predict(e) for s, e in rows.items()}),
    ]
    return Report(name="a run", task=task, best_by=best_by, contenders=contenders, **more)


def figures_of(contender: Contender, split: str) -> dict[str, float | None]:
    said = contender.splits[split]
    assert isinstance(said, Predictions)
    return measure(said).figures()


METRICS = "step,tokens,loss,learning_rate,grad_norm,valid_loss,valid_accuracy,valid_mse\n"


@pytest.mark.parametrize(
    "task, splits, plots",
    [
        ("single_label", ("valid", "test"), ["confusion.png", "reliability.png"]),
        ("multi_label", ("valid",), ["reliability.png"]),
        ("regression", ("valid", "test"), ["predicted.png"]),
    ],
    ids=["single", "multi", "number"],
)
def test_the_folder_holds_markdown_json_and_the_plots_that_the_text_shows(tmp_path, task, splits, plots):
    (tmp_path / "metrics.csv").write_text(METRICS + "1,9,2.0,0.1,1,,,\n2,18,1.5,0.1,1,1.7,0.5,9\n")
    wanted = [*plots, "learning_curves.png"]
    written = write_report(tmp_path, report(task, splits, "mae" if task == "regression" else "accuracy"))
    assert [path.name for path in written] == ["report.md", "report.json", *wanted]
    text = written[0].read_text(encoding="utf-8")
    assert [line.partition("(")[2][:-1] for line in text.splitlines() if line.startswith("![")] == wanted
    assert json.loads(written[1].read_text(encoding="utf-8"))["shown"] == splits[-1]
    for path in written[2:]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and struct.unpack(">I", content[16:20])[0] > 500


def test_the_summary_has_every_contenders_figures():
    made = report()
    table = report_table(made)
    for contender in made.contenders:
        for split in ("valid", "test"):
            assert table["summary"][contender.name][split] == figures_of(contender, split)
    text = markdown(table, [])
    for contender in made.contenders:
        figures = figures_of(contender, "test")
        row = [f"{figures[n]:,.4f}" for n in ("accuracy", "macro_f1", "weighted_f1", "mcc", "loss")]
        assert f"| {contender.name} | {' | '.join(row)} | {contender.note} |" in text


def test_temperature_and_thresholds_come_from_valid_alone():
    """Other test rows change neither; other validation rows change both."""
    made = report("multi_label")
    valid, test = made.contenders[0].splits["valid"], made.contenders[0].splits["test"]
    assert isinstance(valid, Predictions) and isinstance(test, Predictions)
    table = report_table(made)["calibration"]
    temperature = fit_temperature(valid)
    thresholds = fit_thresholds(calibrated(valid, temperature.value))
    assert (table["temperature"], table["thresholds"]) == (temperature.value, list(thresholds))
    after = calibrated(test, temperature.value)
    assert table["splits"]["test"] == {
        "ece": reliability(test).ece,
        "ece_calibrated": reliability(after).ece,
        "loss": losses(test).mean(),
        "loss_calibrated": losses(after).mean(),
    }
    assert report_table(made)["at_thresholds"]["test"] == measure(after, thresholds).figures()


def test_what_a_run_keeps_of_the_calibration():
    kept = calibrate(drawn(task="multi_label"))
    assert kept is not None
    assert list(kept.table()) == ["temperature", "note", "thresholds"]
    assert calibrate(drawn(task="regression")) is None


def test_mistakes_are_the_wrong_rows_most_sure_first():
    said = drawn(80)
    kept = calibrate(said)
    assert kept is not None
    shares = said.probabilities(kept.temperature.value)
    wrong = [n for n in range(80) if shares[n].argmax() != said.targets[n]]
    found = mistakes(said, kept, count=1000)
    assert sorted(entry["row"] - 1 for entry in found) == wrong
    assert [entry["probability"] for entry in found] == sorted((shares[n].max() for n in wrong), reverse=True)
    for entry in found:
        n = entry["row"] - 1
        assert (entry["text"], entry["true"]) == (f"text {n}", NAMES[said.targets[n]])
        assert entry["predicted"] == NAMES[shares[n].argmax()]
    assert mistakes(said, kept, count=3) == found[:3]


def test_mistakes_of_labels_go_by_their_worst_decision():
    said = drawn(80, task="multi_label")
    kept = calibrate(said)
    assert kept is not None and kept.thresholds is not None
    shares = said.probabilities(kept.temperature.value)
    guesses = decide(shares, kept.thresholds)
    found = mistakes(said, kept, count=1000)
    assert {entry["row"] - 1 for entry in found} == set(np.flatnonzero((guesses != said.targets).any(axis=1)))
    worst = np.where(guesses == said.targets, 0, np.where(guesses == 1, shares, 1 - shares)).max(axis=1)
    assert [entry["probability"] for entry in found] == pytest.approx(sorted(worst[worst > 0], reverse=True))


def test_mistakes_of_numbers_are_the_largest_errors():
    said = drawn(30, task="regression")
    errors = np.abs(said.logits[:, 0] - said.targets)
    assert [entry["row"] - 1 for entry in mistakes(said, None, count=30)] == np.argsort(-errors).tolist()


def test_the_text_of_a_pair_is_both_on_one_line_and_cut():
    said = drawn(1, scale=-9.0)  # wrong
    long = Predictions(
        task=said.task, logits=said.logits, targets=said.targets, label_names=NAMES, texts=(("one\ntwo", "x" * 500),)
    )
    kept = calibrate(drawn())
    (entry,) = mistakes(long, kept)
    assert entry["text"].startswith("one two / xxx") and len(entry["text"]) == 240


def test_seeds_are_a_mean_a_sample_deviation_and_each():
    seeds = {seed: {"test": {"accuracy": value, "mcc": None}} for seed, value in ((0, 0.5), (1, 0.6), (5, 1.0))}
    made = report(seeds=seeds)
    found = report_table(made)["seeds"]["test"]
    assert found["accuracy"]["mean"] == pytest.approx(0.7)
    assert found["accuracy"]["deviation"] == pytest.approx(np.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert found["accuracy"]["each"] == {"0": 0.5, "1": 0.6, "5": 1.0}
    assert (found["mcc"]["mean"], found["mcc"]["deviation"]) == (None, None)
    text = markdown(report_table(made), [])
    assert "| accuracy | 0.7000 ± 0.2646 | 0.5000 | 0.6000 | 1.0000 |" in text
    assert report_table(report(seeds={0: seeds[0]}))["seeds"] == {}


@pytest.mark.parametrize(
    "by, own, other, words",
    [
        (
            "accuracy",
            0.9,
            0.8,
            r"By accuracy on test m \(0.9000\) beats x \(0.8000\). One standard error .* is 0.0300.",
        ),
        ("accuracy", 1.0, 0.8, r"No mistake on 100 rows says, at 95 %, no more than an accuracy above 0.9705.$"),
        ("accuracy", 0.8, 0.8, r"beats nothing; \*\*not x \(0.8000\)\*\*"),
        ("loss", 0.2, 0.3, r"By loss on test m \(0.2000\) beats x \(0.3000\).$"),
        ("mse", 0.3, 0.2, r"beats nothing; \*\*not x"),
        ("perplexity", 8.0, 9.0, r"By perplexity on test m \(8.0000\) beats x \(9.0000\).$"),
        ("mcc", None, 0.2, "There is no mcc on test to compare"),
        ("mcc", 0.2, None, r"m has 0.2000; nothing else here has one"),
    ],
)
def test_the_verdict_says_whom_the_model_beats(by, own, other, words):
    table = {"shown": "test", "best_by": by, "rows": 100}
    table["summary"] = {"m": {"test": {by: own}}, "x": {"test": {by: other}}}
    assert re.search(words, verdict(table))


@pytest.mark.parametrize(
    "figure, words",
    [(0.25, "step 1,200, the best by f1 on valid."), (None, "step 1,200, the newest, as there is no f1 on valid")],
)
def test_the_opening_says_which_checkpoint_it_is_about(figure, words):
    """A figure that no evaluation has, such as an F1 without a tag in the table, chooses none."""
    model = Contender(name="m", splits={"valid": {"loss": 0.5, "f1": figure}, "test": {"loss": 0.6, "f1": 0.25}})
    made = Report(name="tags", task="tagging", best_by="f1", contenders=[model], step=1200)
    assert words in markdown(report_table(made), [])


def test_classes_and_confusions_are_those_of_the_split_that_is_shown():
    made = report()
    test = made.contenders[0].splits["test"]
    assert isinstance(test, Predictions)
    table = report_table(made)
    confusion = np.zeros((3, 3), int)
    for target, guess in zip(test.targets, test.logits.argmax(axis=1), strict=True):
        confusion[target, guess] += 1
    found = {(entry["true"], entry["predicted"]): entry["rows"] for entry in table["confusion"]}
    assert found == {place: n for place, n in np.ndenumerate(confusion) if n}
    assert [row["support"] for row in table["classes"]] == confusion.sum(axis=1).tolist()
    off = confusion - np.diag(np.diag(confusion))
    row, column = np.unravel_index(off.argmax(), off.shape)
    first = markdown(table, []).partition("## Confusions, on test")[2].splitlines()[4]
    assert first == f"| {cell(NAMES[row])} | {cell(NAMES[column])} | {off.max()} |"


def test_a_task_with_figures_of_its_own_gets_the_summary(tmp_path):
    model = Contender(name="this model", splits={"valid": {"loss": 0.5, "f1": None}, "test": {"loss": 0.6, "f1": 0.25}})
    made = Report(name="tags", task="tagging", best_by="f1", contenders=[model])
    text, table = (path.read_text(encoding="utf-8") for path in write_report(tmp_path, made))
    assert "| this model | 0.5000 | – |" in text and "| this model | 0.6000 | 0.2500 |" in text
    assert json.loads(table)["summary"]["this model"]["test"] == {"loss": 0.6, "f1": 0.25}


def test_counts_of_data_and_parameters_are_tables():
    made = report(
        data={"train": {"rows": 1000, "cut_rows": 3}, "test": {"rows": 60, "in_train": 2}},
        trained={"head": (10, 10), "all": (12345, 10)},
        notes=["2 rows are in *both*"],
    )
    text = markdown(report_table(made), [])
    assert "| train | 1,000 | 3 | – |" in text and "| test | 60 | – | 2 |" in text
    assert "| all | 12,345 | 10 |" in text
    assert r"- 2 rows are in \*both\*" in text


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(drawn(1), id="one-row"),
        pytest.param(drawn(5, scale=50.0), id="without-temperature"),
        pytest.param(drawn(200, K=25), id="too-many-for-numbers"),
        pytest.param(drawn(200, K=70), id="too-many-for-names"),
        pytest.param(drawn(1, task="regression"), id="one-number"),
        pytest.param(drawn(3, K=1, task="multi_label"), id="one-label"),
    ],
)
def test_odd_splits_are_reported_too(tmp_path, said):
    made = Report(name="odd", task=said.task, best_by="loss", contenders=[Contender(name="m", splits={"valid": said})])
    for path in write_report(tmp_path, made):
        assert path.stat().st_size > 100


def test_equal_reports_give_equal_bytes(tmp_path):
    first = [path.read_bytes() for path in write_report(tmp_path, report())]
    assert [path.read_bytes() for path in write_report(tmp_path, report())] == first


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_json_has_no_nan(task):
    """Empty bins and undefined figures are null: NaN is no JSON."""
    json.dumps(report_table(report(task, best_by="loss")), allow_nan=False)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(InputError, match="cannot write .*report"):
        write_report(tmp_path, report())


def test_a_class_without_rows_is_grey_and_cells_have_their_counts():
    figure = confusion_figure("t", np.array([[3, 1], [0, 0]]), ["a", r"$\bad$ and a name that is far too long for it"])
    axes = figure.axes[0]
    image = axes.get_images()[0].get_array()
    assert image is not None
    assert image[0].tolist() == [0.75, 0.25] and image[1].mask.all()
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", r"$\bad$ and a name that …"]
    figure.canvas.draw()


def test_the_reliability_figure_has_a_column_for_each_panel():
    bins = reliability(drawn())
    figure = reliability_figure("t", {"before": bins, "after": bins})
    assert [axes.get_title() for axes in figure.axes[:2]] == [f"{n}: ECE {bins.ece:.3f}" for n in ("before", "after")]
    line = figure.axes[0].get_lines()[1]
    assert list(line.get_ydata()) == bins.accuracy[bins.counts > 0].tolist()
    assert [bar.get_height() for bar in figure.axes[2].patches] == bins.counts.tolist()


def test_the_learning_curves_show_bounded_figures_and_the_chosen_step():
    metrics = {"step": [1.0, 2.0], "loss": [2.0, 1.0], "valid_loss": [None, 1.5]}
    metrics |= {"valid_accuracy": [None, 0.7], "valid_mse": [None, 40.0], "valid_mcc": [None, None]}
    metrics |= {"valid_perplexity": [None, 4.5], "valid_best_threshold": [None, -9.0]}
    upper, lower = learning_curves_figure("t", metrics, best=2).axes
    assert [line.get_label() for line in upper.get_lines()][-1] == "chosen, step 2"
    assert [line.get_label() for line in lower.get_lines()] == ["accuracy", "chosen, step 2"]
    (only,) = learning_curves_figure("t", {"step": [1.0], "loss": [2.0], "valid_loss": [None]}).axes
    assert only.get_ylabel() == "loss per target"


def test_predicted_numbers_stand_against_the_true_ones():
    axes = regression_figure("t", np.array([1.0, 2.0]), np.array([1.5, 1.0])).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 1.5], [2.0, 1.0]]
