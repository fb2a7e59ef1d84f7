"""A report's table as Markdown: what a reader asks first stands first.

Read next: `report_plots.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minillm.training.config import LOWER_IS_BETTER

CONFUSIONS = 10  # pairs of classes that are listed
FITTED = "temperature and thresholds of valid, whose own figures this flatters"
CAPTIONS = {
    "confusion.png": "confusion matrix",
    "predicted.png": "predicted against true numbers",
    "reliability.png": "reliability",
    "learning_curves.png": "learning curves",
}


def markdown(table: Mapping[str, Any], plots: Sequence[str]) -> str:
    """Return the text of report.md.

    Args:
        table: of `report.report_table`.
        plots: names of the PNGs beside it.
    """
    lines = [f"# {cell(table['run'])}", "", _opening(table), ""]
    if table["notes"]:
        lines += [*(f"- {cell(note)}" for note in table["notes"]), ""]

    def images(*names: str) -> list[str]:
        return [line for name in names if name in plots for line in (f"![{CAPTIONS[name]}]({name})", "")]

    lines += _summary(table) + _seeds(table) + _classes(table)
    lines += _confusions(table) + images("confusion.png", "predicted.png")
    lines += _calibration(table) + images("reliability.png") + _mistakes(table)
    if "learning_curves.png" in plots:
        lines += ["## Learning", "", *images("learning_curves.png")]
    lines += _data(table) + _trained(table)
    return "\n".join(lines).rstrip() + "\n"


def _opening(table: Mapping[str, Any]) -> str:
    """Return what was learnt and which checkpoint this is about."""
    if table["step"] is None:
        return f"Task: {table['task']}."
    by, model = table["best_by"], next(iter(table["summary"].values()))
    chosen = f"the best by {by} on valid"
    if model.get("valid", {}).get(by) is None:
        chosen = f"the newest, as there is no {by} on valid to choose by"
    return f"Task: {table['task']}. Checkpoint: step {table['step']:,}, {chosen}."


def _summary(table: Mapping[str, Any]) -> list[str]:
    """Return every contender's figures, split by split, and what is to be made of them."""
    lines = ["## Summary", ""]
    contenders = table["summary"]
    first = next(iter(contenders.values()))
    for split in [name for name in ("valid", "test") if name in first]:
        names = list(first[split])
        rows = [
            [cell(name), *(number(entry[split].get(figure)) for figure in names), cell(entry["note"])]
            for name, entry in contenders.items()
            if entry.get(split)
        ]
        if "at_thresholds" in table:
            values = (number(table["at_thresholds"][split].get(figure)) for figure in names)
            rows.insert(1, ["… at fitted thresholds", *values, FITTED])
        lines += [f"On {split}:", "", *grid(["", *(name.replace("_", " ") for name in names), ""], rows), ""]
    return lines + [verdict(table), ""]


def verdict(table: Mapping[str, Any]) -> str:
    """Return one sentence: whom the model beats by the figure that it was chosen by, and how sure that figure is."""
    shown, by = table["shown"], table["best_by"]
    (name, model), *others = table["summary"].items()
    own = model[shown].get(by)
    if own is None:
        return f"There is no {by} on {shown} to compare."
    sign = -1 if by in LOWER_IS_BETTER else 1
    rivals = {n: e[shown][by] for n, e in others if e.get(shown) and e[shown].get(by) is not None}
    if not rivals:
        return f"By {by} on {shown} {cell(name)} has {number(own)}; nothing else here has one."
    beaten = [f"{cell(n)} ({number(v)})" for n, v in rivals.items() if sign * own > sign * v]
    others = [f"{cell(n)} ({number(v)})" for n, v in rivals.items() if not sign * own > sign * v]
    text = f"By {by} on {shown} {cell(name)} ({number(own)}) beats {listed(beaten) or 'nothing'}"
    text += f"; **not {listed(others)}**." if others else "."
    if by == "accuracy" and table.get("rows") and own == 1:  # the formula below would say that it is certain
        least = 0.05 ** (1 / table["rows"])  # each row right with this probability, all of them are once in 20 times
        text += f" No mistake on {table['rows']:,} rows says, at 95 %, no more than an accuracy above {number(least)}."
    elif by == "accuracy" and table.get("rows"):
        error = math.sqrt(own * (1 - own) / table["rows"])
        text += f" One standard error of this accuracy on {table['rows']:,} rows is {number(error)}."
    return text


def _seeds(table: Mapping[str, Any]) -> list[str]:
    """Return mean, deviation and each seed of every figure."""
    if not table["seeds"]:
        return []
    lines = ["## Seeds", ""]
    for split, figures in table["seeds"].items():
        seeds = list(next(iter(figures.values()))["each"])
        rows = [
            [
                name.replace("_", " "),
                f"{number(entry['mean'])} ± {number(entry['deviation'])}",
                *(number(entry["each"][seed]) for seed in seeds),
            ]
            for name, entry in figures.items()
        ]
        lines += [f"On {split}, mean ± standard deviation of {len(seeds)} seeds, and each:", ""]
        lines += [*grid(["", "mean", *(f"seed {seed}" for seed in seeds)], rows), ""]
    return lines


def _classes(table: Mapping[str, Any]) -> list[str]:
    """Return the row of every class."""
    if "classes" not in table:
        return []
    thresholds = table.get("calibration", {}).get("thresholds")
    names = ["precision", "recall", "f1", "support", "predicted"]
    rows = [[cell(row["name"]), *(number(row[name]) for name in names)] for row in table["classes"]]
    head, note = ["class", *names], ""
    if thresholds is not None:
        head.append("fitted threshold")
        note = ", at threshold 0.5"
        rows = [[*row, number(value)] for row, value in zip(rows, thresholds, strict=True)]
    return [f"## Classes, on {table['shown']}{note}", "", *grid(head, rows), ""]


def _confusions(table: Mapping[str, Any]) -> list[str]:
    """Return the pairs of classes that are mistaken for each other most often."""
    if "confusion" not in table:
        return [f"## Predictions, on {table['shown']}", ""] if table["task"] == "regression" else []
    labels = table["labels"]
    pairs = [
        (entry["rows"], entry["true"], entry["predicted"])
        for entry in table["confusion"]
        if entry["true"] != entry["predicted"]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [[cell(labels[row]), cell(labels[column]), f"{count:,}"] for count, row, column in pairs[:CONFUSIONS]]
    lines = [f"## Confusions, on {table['shown']}", ""]
    return [*lines, *(grid(["true", "predicted as", "rows"], rows) if rows else ["There is no mistake."]), ""]


def _calibration(table: Mapping[str, Any]) -> list[str]:
    """Return what the probabilities are worth, before and after the temperature."""
    if "calibration" not in table:
        return []
    found = table["calibration"]
    value, note = found["temperature"], found["note"]
    text = f"Temperature {value:.3f}, fitted on valid and stored: `minillm predict` gives the probabilities at it."
    if note:
        text = f"No temperature was fitted (it stays 1): {note}."
    rows = [
        [split, *(number(entry[key]) for key in ("ece", "ece_calibrated", "loss", "loss_calibrated"))]
        for split, entry in found["splits"].items()
    ]
    head = ["", "ECE", "ECE at the temperature", "loss", "loss at the temperature"]
    ece = f"ECE is over {found['bins']} bins of equal width; the loss is in nats per target."
    return ["## Calibration", "", text, ece, "", *grid(head, rows), ""]


def _mistakes(table: Mapping[str, Any]) -> list[str]:
    """Return the texts that the model is most surely wrong about."""
    found = table.get("mistakes")
    if not found:
        return []
    measure = "error" if "error" in found[0] else "probability"
    rows = [
        [
            f"{entry['row']:,}",
            *(cell(v) if isinstance(v, str) else number(v) for v in (entry["true"], entry["predicted"])),
            number(entry[measure]),
            cell(entry["text"] or ""),
        ]
        for entry in found
    ]
    title = "Largest errors" if measure == "error" else "Most confident mistakes"
    return [f"## {title}, on {table['shown']}", "", *grid(["row", "true", "predicted", measure, "text"], rows), ""]


def _data(table: Mapping[str, Any]) -> list[str]:
    """Return what the splits hold."""
    if not table["data"]:
        return []
    names = list(dict.fromkeys(name for counts in table["data"].values() for name in counts))
    rows = [[split, *(number(counts.get(name)) for name in names)] for split, counts in table["data"].items()]
    return ["## Data", "", *grid(["", *(name.replace("_", " ") for name in names)], rows), ""]


def _trained(table: Mapping[str, Any]) -> list[str]:
    """Return what learnt."""
    if not table["trained"]:
        return []
    rows = [[cell(part), f"{n['parameters']:,}", f"{n['learning']:,}"] for part, n in table["trained"].items()]
    return ["## Parameters", "", *grid(["", "parameters", "learning"], rows), ""]


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; columns of numbers are set to the right.

    >>> grid(["", "n"], [["a", "1"]])
    ['|  | n |', '|:---|---:|', '| a | 1 |']
    """
    rows = list(rows)
    numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(head))]
    bars = "|" + "|".join("---:" if right else ":---" for right in numeric) + "|"
    return [f"| {' | '.join(head)} |", bars, *(f"| {' | '.join(row)} |" for row in rows)]


def _is_number(text: str) -> bool:
    return text == "–" or text.replace(",", "").replace(".", "").replace(" ± ", "").lstrip("-").isdigit()


def number(value: float | None) -> str:
    """Return a figure as the report has it: counts with commas, other numbers with four places, – where there is none.

    >>> [number(value) for value in (1234, 0.12345, None)]
    ['1,234', '0.1235', '–']
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def cell(text: str) -> str:
    """Return a text that means itself in a Markdown table: one line, no bars, tags, emphasis, code, links or images.

    >>> cell("a|b *c* <d>")
    'a\\\\|b \\\\*c\\\\* \\\\<d>'
    """
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<|~$&" else c for c in line)


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
