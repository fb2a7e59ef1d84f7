r"""The report of a fine-tuning run: what a reader must see before believing a figure, as Markdown, JSON and PNG.

    report/report.md         the model beside its baselines, per class, calibration, mistakes, data, what was trained
    report/report.json       the same numbers
    report/*.png             confusion matrix (or predicted against true numbers), reliability, learning curves

The splits say who may be asked what: temperature and thresholds come from `valid` alone; classes, confusion and
mistakes are shown for `test` where there is one.

Read next: `report_markdown.py`, then `report_plots.py`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from minillm.checkpoint.files import explained, write_text
from minillm.finetune.calibration import BINS, Temperature, calibrated, fit_temperature, reliability
from minillm.finetune.metrics import (
    ClassFigures,
    MultiLabelMetrics,
    SingleLabelMetrics,
    decide,
    fit_thresholds,
    losses,
    measure,
    targets_of,
)
from minillm.finetune.predictions import Predictions
from minillm.finetune.report_markdown import markdown
from minillm.finetune.report_plots import (
    confusion_figure,
    learning_curves_figure,
    regression_figure,
    reliability_figure,
    shortened,
)
from minillm.training.plots import save
from minillm.training.records import read_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = Mapping[str, float | None]

MISTAKES = 20  # that are quoted
QUOTED = 240  # characters of each


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the summary: this model, a baseline, the same model from random weights, an ensemble.

    name: as the table has it. note: what it is, in a few words.
    splits: "valid", "test" -> what it says there, or where a task has its own answers the figures of them.
    """

    name: str
    note: str = ""
    splits: Mapping[str, Predictions | Figures]

    def figures(self, split: str) -> Figures:
        """Return the figures on a split; none where it was not asked."""
        said = self.splits.get(split, {})
        return measure(said).figures() if isinstance(said, Predictions) else said


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report is written from.

    name: of the run. task: such as single_label. best_by: the figure that the chosen checkpoint is the best in.
    contenders: this model first.
    step: of the chosen checkpoint; None: not known.
    seeds: seed -> split -> figures, of all runs; fewer than two make no table.
    classes: of the split that is shown, where a task has its own answers; else they are taken from the predictions.
    data: split -> column -> count, such as rows, cut rows, cut tokens, rows that stand in the training table too.
    trained: part -> (parameters, those that learnt).
    notes: sentences that a reader needs, such as warnings of the run.
    """

    name: str
    task: str
    best_by: str
    contenders: Sequence[Contender]
    step: int | None = None
    seeds: Mapping[int, Mapping[str, Figures]] = field(default_factory=dict)
    classes: Sequence[ClassFigures] = ()
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    trained: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was learnt from the validation split for the use of a model, beside its weights.

    temperature: of the probabilities. thresholds: of each label at that temperature; None: not multi_label.
    """

    temperature: Temperature
    thresholds: tuple[float, ...] | None = None

    def table(self) -> dict[str, Any]:
        """Return it as a run folder keeps it, in calibration.json."""
        kept: dict[str, Any] = {"temperature": self.temperature.value, "note": self.temperature.note}
        return kept if self.thresholds is None else kept | {"thresholds": list(self.thresholds)}


def calibrate(valid: Predictions) -> Calibration | None:
    """Return temperature and thresholds, fitted on the validation split; None for a regression."""
    if valid.task == "regression":
        return None
    temperature = fit_temperature(valid)
    several = valid.task == "multi_label"
    thresholds = fit_thresholds(calibrated(valid, temperature.value)) if several else None
    return Calibration(temperature=temperature, thresholds=thresholds)


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return part -> (parameters, those that learn), for the parts of a task model, and their sum as "all".

    >>> from torch import nn
    >>> model = nn.ModuleDict({"backbone": nn.Linear(2, 3).requires_grad_(False), "head": nn.Linear(3, 1)})
    >>> count_parameters(model)
    {'backbone': (9, 0), 'head': (4, 4), 'all': (13, 4)}
    """
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        part = " ".join(words[:2]) if words[0] == "backbone" and len(words) > 2 else words[0]
        total, learning = counts.get(part, (0, 0))
        counts[part] = total + parameter.numel(), learning + parameter.requires_grad * parameter.numel()
    return counts | {"all": (sum(total for total, _ in counts.values()), sum(n for _, n in counts.values()))}


def write_report(run: Path, report: Report) -> list[Path]:
    """Write the report into the folder `report` of a run.

    Args:
        run: its folder; metrics.csv in it becomes the learning curves.
    Returns:
        the files, report.md first.
    Raises:
        InputError: a file cannot be written, or metrics.csv is damaged.

    Cost: a second or two, most of it drawing.
    """
    folder = run / "report"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    table = report_table(report)
    plots = [save(figure, folder / file) for file, figure in _plots(report, table, run / "metrics.csv").items()]
    texts = {
        "report.md": markdown(table, [path.name for path in plots]),
        "report.json": json.dumps(table, indent=1, allow_nan=False) + "\n",
    }
    for file, text in texts.items():
        write_text(folder / file, text)
    return [*(folder / file for file in texts), *plots]


def report_table(report: Report) -> dict[str, Any]:
    """Return all that the report says, as JSON can hold it: what has no value is None."""
    model = report.contenders[0]
    shown = "test" if "test" in model.splits else "valid"
    said, valid = model.splits[shown], model.splits.get("valid")
    calibration = calibrate(valid) if isinstance(valid, Predictions) else None
    table: dict[str, Any] = {
        "run": report.name,
        "task": report.task,
        "best_by": report.best_by,
        "step": report.step,
        "shown": shown,
        "summary": {
            contender.name: {"note": contender.note} | {split: dict(contender.figures(split)) for split in model.splits}
            for contender in report.contenders
        },
        "seeds": _seeds(report.seeds),
        "data": {split: dict(counts) for split, counts in report.data.items()},
        "trained": {part: {"parameters": n, "learning": m} for part, (n, m) in report.trained.items()},
        "notes": list(report.notes),
    }
    if report.classes:
        table["classes"] = [dict(vars(row)) for row in report.classes]
    if isinstance(said, Predictions):
        table |= {"rows": len(targets_of(said)), **_details(said, calibration)}
    if calibration is not None:
        splits = {name: p for name, p in model.splits.items() if isinstance(p, Predictions)}
        table["calibration"] = calibration.table() | {"bins": BINS, "splits": _before_and_after(splits, calibration)}
        if calibration.thresholds is not None:
            table["at_thresholds"] = {
                name: measure(calibrated(p, calibration.temperature.value), calibration.thresholds).figures()
                for name, p in splits.items()
            }
    return table


def _details(said: Predictions, calibration: Calibration | None) -> dict[str, Any]:
    """Return classes, confusions and mistakes on the split that is shown."""
    metrics, details = measure(said), dict[str, Any]()
    if isinstance(metrics, SingleLabelMetrics | MultiLabelMetrics):
        details["classes"] = [dict(vars(row)) for row in metrics.classes]
    if isinstance(metrics, SingleLabelMetrics):
        rows, columns = (places.tolist() for places in np.nonzero(metrics.confusion))
        counts = metrics.confusion[rows, columns].tolist()
        # cells and not a table: of a thousand classes that would be a million numbers, nearly all of them 0
        cells = [{"true": t, "predicted": p, "rows": n} for t, p, n in zip(rows, columns, counts, strict=True)]
        details |= {"confusion": cells, "labels": list(said.label_names)}
    return details | {"mistakes": mistakes(said, calibration)}


def _before_and_after(splits: Mapping[str, Predictions], calibration: Calibration) -> dict[str, Any]:
    """Return split -> ECE and loss of the probabilities as they are and at the temperature."""
    found = {}
    for name, said in splits.items():
        after = calibrated(said, calibration.temperature.value)
        found[name] = {
            "ece": reliability(said).ece,
            "ece_calibrated": reliability(after).ece,
            "loss": float(losses(said).mean()),
            "loss_calibrated": float(losses(after).mean()),
        }
    return found


def _seeds(seeds: Mapping[int, Mapping[str, Figures]]) -> dict[str, Any]:
    """Return split -> figure -> mean, deviation and each, for two seeds or more."""
    found: dict[str, Any] = {}
    if len(seeds) < 2:
        return found
    for split in next(iter(seeds.values())):
        rows = {str(seed): splits[split] for seed, splits in seeds.items()}
        found[split] = {
            name: {"mean": mean, "deviation": deviation, "each": {seed: row[name] for seed, row in rows.items()}}
            for name, (mean, deviation) in spread(list(rows.values())).items()
        }
    return found


def spread(runs: Sequence[Figures]) -> dict[str, tuple[float | None, float | None]]:
    """Return figure -> (mean, deviation) over runs; None where a run has no value of it.

    The deviation is that of a sample, with n - 1 below, and None for a single run.

    >>> spread([{"f1": 1.0, "mcc": None}, {"f1": 2.0, "mcc": 0.5}])
    {'f1': (1.5, 0.707...), 'mcc': (None, None)}
    """
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in runs[0]:
        values = [value for figures in runs if (value := figures[name]) is not None]
        known = len(values) == len(runs)
        mean = statistics.fmean(values) if known else None
        found[name] = mean, statistics.stdev(values) if known and len(values) > 1 else None
    return found


def mistakes(said: Predictions, calibration: Calibration | None, count: int = MISTAKES) -> list[dict[str, Any]]:
    """Return the rows that the model is most surely wrong about, worst first.

    single_label: by the probability of the predicted class, and multi_label by that of the worst decision, at the
    fitted temperature; regression: by |predicted - true|.

    Returns:
        row (from 1), text where it is known, true, predicted, and `probability` or `error`.
    """
    targets, names = targets_of(said), said.label_names
    if said.task == "regression":
        errors = np.abs(said.logits[:, 0] - targets)
        order = np.argsort(-errors, kind="stable")[:count]
        found = [(n, float(targets[n]), float(said.logits[n, 0]), {"error": float(errors[n])}) for n in order]
    else:
        assert calibration is not None
        shares = said.probabilities(calibration.temperature.value)  # (N, K)
        if said.task == "single_label":
            guesses = shares.argmax(axis=1)
            sure = np.where(guesses == targets, -1.0, shares.max(axis=1))
            words = [(names[t], names[g]) for t, g in zip(targets, guesses, strict=True)]
        else:
            assert calibration.thresholds is not None
            guesses = decide(shares, calibration.thresholds)
            sure = np.where(guesses == targets, -1.0, np.where(guesses == 1, shares, 1 - shares)).max(axis=1)
            words = [(_named(t, names), _named(g, names)) for t, g in zip(targets, guesses, strict=True)]
        order = [n for n in np.argsort(-sure, kind="stable")[:count] if sure[n] >= 0]
        found = [(n, *words[n], {"probability": float(sure[n])}) for n in order]
    return [
        {"row": int(n) + 1, "text": None if said.texts is None else _quoted(said.texts[n]), "true": t, "predicted": g}
        | more
        for n, t, g, more in found
    ]


def _named(row: NDArray, names: Sequence[str]) -> str:
    """Return the labels that are there."""
    return ", ".join(name for name, there in zip(names, row, strict=True) if there) or "none"


def _quoted(text: str | tuple[str, str]) -> str:
    """Return a text, or the two of a pair, on one line and not too long."""
    return shortened(text if isinstance(text, str) else " / ".join(text), QUOTED)


def _plots(report: Report, table: Mapping[str, Any], metrics: Path) -> dict[str, Figure]:
    """Return file name -> figure."""
    figures: dict[str, Figure] = {}
    said = report.contenders[0].splits[table["shown"]]
    on = f"{report.name}, {table['shown']}"
    if "confusion" in table:
        confusion = np.zeros((len(table["labels"]),) * 2, np.int64)
        for entry in table["confusion"]:
            confusion[entry["true"], entry["predicted"]] = entry["rows"]
        figures["confusion.png"] = confusion_figure(f"{on}: confusion", confusion, table["labels"])
    if isinstance(said, Predictions) and said.task == "regression":
        figures["predicted.png"] = regression_figure(f"{on}: predicted and true", targets_of(said), said.logits[:, 0])
    if isinstance(said, Predictions) and "calibration" in table:
        value = table["calibration"]["temperature"]
        panels = {"as trained": reliability(said)}
        if value != 1.0:
            panels[f"at temperature {value:.2f}"] = reliability(calibrated(said, value))
        several = said.task == "multi_label"
        figures["reliability.png"] = reliability_figure(f"{on}: reliability", panels, multi_label=several)
    if metrics.exists():
        curves = read_columns(metrics)
        figures["learning_curves.png"] = learning_curves_figure(f"{report.name}: learning", curves, report.step)
    return figures
