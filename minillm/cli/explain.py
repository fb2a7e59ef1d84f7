"""`minillm explain RUN --text T`: which pieces of a text made a fine-tuned model say what it says.

Read next: `minillm/explain.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.arguments import Parser, print_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minillm.finetune.predict import Finetuned

METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is to be printed as lines, or as JSON, and file name -> what draws it."""

    lines: list[str]
    table: dict[str, Any]
    figures: dict[str, Callable[[], Figure]]


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm explain",
        description="Score the pieces of a text by what they add to a fine-tuned model's answer.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of minillm finetune")
    parser.add_argument("--text", required=True, metavar="TEXT", help="a text")
    parser.add_argument("--pair", metavar="TEXT", help="the second text, for pairs")
    parser.add_argument("--label", metavar="NAME", help="the label to explain (default: the likeliest)")
    parser.add_argument(
        "--method", default=METHODS[0], choices=METHODS, help="how pieces are scored (default integrated_gradients)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write PNGs into this folder")
    parser.checkpoint_option()
    parser.device_option()
    parser.json_option()
    arguments = parser.parse(argv)

    from minillm.checkpoint.files import explained
    from minillm.finetune.predict import load_finetuned
    from minillm.training.plots import save
    from minillm.training.precision import choose_device

    device = choose_device(arguments.device, setting="--device")
    shown = _explained(arguments, load_finetuned(arguments.run, arguments.checkpoint, device=device))
    if arguments.out is not None:
        with explained(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
        plots = [str(save(draw(), arguments.out / name)) for name, draw in shown.figures.items()]
        shown.table["plots"] = plots
        shown.lines.extend(f"wrote {path}" for path in plots)
    if arguments.json:
        print_json({"run": str(arguments.run), "text": arguments.text} | shown.table)
    else:
        print("\n".join(shown.lines))


def _explained(arguments: argparse.Namespace, loaded: Finetuned) -> Shown:
    """Return the scores of the pieces."""
    from minillm.explain import explain
    from minillm.explain_shown import attribution_figure, attribution_lines

    found = explain(loaded, arguments.text, arguments.pair, label=arguments.label, method=arguments.method)
    scores = found.attribution
    table: dict[str, Any] = {
        "label": found.label,
        "probability": found.probability,
        "method": scores.method,
        "value": scores.value,
        "baseline_value": scores.baseline_value,
        "sum": float(scores.scores.sum()),
        "gap": scores.gap,
        "steps": scores.steps,
        "complete": scores.complete(),
        "pieces": [
            {"piece": piece, "score": float(score)}
            for piece, score in zip(found.reading.pieces, scores.scores, strict=True)
        ],
    }
    answer = found.label if found.label is not None else f"{scores.value:.4g}"
    figures = {"attribution.png": lambda: attribution_figure(f"{arguments.run.resolve().name}: {answer}", found)}
    return Shown(lines=attribution_lines(found), table=table, figures=figures)
