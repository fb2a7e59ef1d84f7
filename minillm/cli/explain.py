"""`minillm explain RUN --text T`: which pieces of a text made a fine-tuned model say what it says.

With --attention, what each token of the text looks at in a run of any kind.

Read next: `minillm/explain.py`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.arguments import Parser, print_json, say
from minillm.errors import InputError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from minillm.reading import Reading

METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is to be printed as lines, or as JSON, and file name -> what draws it. reading: the text as it was read."""

    reading: Reading
    lines: list[str]
    table: dict[str, Any]
    figures: dict[str, Callable[[], Figure]]


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm explain",
        description="Score the pieces of a text by what they add to a fine-tuned model's answer; or show what each "
        "token of a text looks at, in any model.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder of minillm finetune; with --attention also of pretrain"
    )
    parser.add_argument("--text", required=True, metavar="TEXT", help="a text")
    parser.add_argument("--pair", metavar="TEXT", help="the second text, for pairs")
    parser.add_argument("--label", metavar="NAME", help="the label to explain (default: the likeliest)")
    parser.add_argument("--method", choices=METHODS, help=f"how pieces are scored (default {METHODS[0]})")
    parser.add_argument("--attention", action="store_true", help="show attention in place of scores")
    parser.add_argument("--layers", metavar="N,N", help="layers of --attention, from 0 (default: all)")
    parser.add_argument(
        "--heads", metavar="N,N", help="heads of --attention, from 0, each by itself (default: the mean of all)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write PNGs into this folder")
    parser.checkpoint_option()
    parser.device_option()
    parser.json_option()
    arguments = parser.parse(argv)

    _check(arguments)

    from minillm.checkpoint.files import explained
    from minillm.training.plots import save
    from minillm.training.precision import choose_device

    device = choose_device(arguments.device, setting="--device")
    shown = (_attended if arguments.attention else _scored)(arguments, device)
    if shown.reading.cut:
        say(f"the text does not fit {len(shown.reading.pieces):,} tokens: {shown.reading.cut:,} tokens were not read")
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


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError where words do not go together."""
    others = ("label", "method") if arguments.attention else ("layers", "heads")
    for name in others:
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} is of the scores, not of --attention; leave it out"
                if arguments.attention
                else f"--{name} goes with --attention; add that, or leave it out"
            )


def _scored(arguments: argparse.Namespace, device: torch.device) -> Shown:
    """Return the scores of the pieces."""
    from minillm.explain import explain
    from minillm.explain_shown import attribution_figure, attribution_lines
    from minillm.finetune.predict import load_finetuned

    loaded = load_finetuned(arguments.run, arguments.checkpoint, device=device)
    method = arguments.method or METHODS[0]
    found = explain(loaded, arguments.text, arguments.pair, label=arguments.label, method=method)
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
    return Shown(reading=found.reading, lines=attribution_lines(found), table=table, figures=figures)


def _attended(arguments: argparse.Namespace, device: torch.device) -> Shown:
    """Return what each token looks at."""
    from minillm.attention_maps import attention_of
    from minillm.attention_shown import attention_figure, attention_lines, key_names
    from minillm.reading import load_any

    loaded = load_any(arguments.run, arguments.checkpoint, device=device)
    layers, heads = (_numbers(name, getattr(arguments, name)) for name in ("layers", "heads"))
    found = attention_of(loaded, arguments.text, arguments.pair, layers=layers, heads=heads)
    run, pieces = arguments.run.resolve().name, found.reading.pieces
    table = {
        "pieces": list(pieces),
        "attention": [
            {"layer": layer, "head": head, "keys": key_names(pieces, P.shape[1]), "weights": P.tolist()}
            for layer, weights in found.maps.items()
            for head, P in zip(found.heads, weights, strict=True)
        ],
    }
    figures = {
        f"attention-layer-{layer:02d}.png": functools.partial(attention_figure, run, found, layer)
        for layer in found.maps
    }
    lines = attention_lines(found, each_head=heads is not None)
    return Shown(reading=found.reading, lines=lines, table=table, figures=figures)


def _numbers(name: str, words: str | None) -> list[int] | None:
    """Return the numbers of an option, None for None.

    Raises:
        InputError: something else than numbers with commas between them.
    """
    if words is None:
        return None
    if not all(word.strip().isdecimal() and len(word) <= 18 for word in words.split(",")):
        raise InputError(f"--{name} takes numbers from 0 such as 0,3, got {words[:40]!r}")
    return [int(word) for word in words.split(",")]
