"""What a step of Muon takes beside torch.optim.Muon: python -m benchmarks.muon [--rounds 30].

Both move the matrices of the small recipes by the same gradients, in turn, after they were seen to end at the same
weights; theirs computes its products in bfloat16, ours in what `minillm pretrain` would choose here. On a machine
whose CPU is slow at bfloat16 that choice is float32.

MUON.json has the samples, MUON.md their medians.

Read next: `../minillm/training/muon.py`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import made_on, write
from benchmarks.machine import header
from benchmarks.parser import Parser
from benchmarks.parts import table
from benchmarks.training.registration import filed

RECIPES = ("shakespeare-char-small-best", "shakespeare-char-best", "mlm-small-best")
OURS, THEIRS = "minillm", "torch.optim.Muon"
VOCABULARY = 512  # of the models; no matrix that Muon moves depends on it


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one optimiser. matrices, elements: what it moves. difference: of both, relative, after a step."""

    recipe: str
    name: str
    matrices: int
    elements: int
    difference: float
    seconds: tuple[float, ...]


def measure(recipe: str, rounds: int) -> list[Steps]:
    """Return the steps of both on the matrices of a recipe's model."""
    import torch

    from benchmarks.timing import Times, interleaved
    from minillm.config import build
    from minillm.model.config import ModelConfig
    from minillm.model.transformer import build_model
    from minillm.training.config import OptimConfig
    from minillm.training.optim import linear_weights, make_optimiser

    shape: ModelConfig = build(ModelConfig, filed(recipe)["model"] | {"vocab_size": VOCABULARY}, source=recipe)
    settings = OptimConfig(name="muon", learning_rate=0.02, momentum=0.95, weight_decay=0.0)
    models = {}
    for name in (OURS, THEIRS):
        torch.manual_seed(0)
        model = models[name] = build_model(shape)
        learning = linear_weights(model)
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is weight for weight in learning))
        for weight in learning:
            weight.grad = torch.randn_like(weight)
    weights = {name: linear_weights(model) for name, model in models.items()}
    theirs = torch.optim.Muon(weights[THEIRS], lr=0.02, weight_decay=0.0, momentum=0.95)
    steps = {OURS: make_optimiser(models[OURS], settings).step, THEIRS: theirs.step}
    for step in steps.values():
        step()
    with torch.no_grad():
        pairs = zip(weights[OURS], weights[THEIRS], strict=True)
        difference = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    found = interleaved(
        {name: lambda _, step=step: step() for name, step in steps.items()},
        copies=1,
        device=torch.device("cpu"),
        rounds=rounds,
        seconds=60.0,
    )
    measured = []
    for name, times in found.items():
        if not isinstance(times, Times):
            raise times
        size = sum(weight.numel() for weight in weights[name])
        measured.append(
            Steps(
                recipe=recipe,
                name=name,
                matrices=len(weights[name]),
                elements=size,
                difference=difference,
                seconds=times.samples,
            )
        )
    return measured


def page(measured: Sequence[Steps], head: Mapping[str, Any]) -> str:
    """Return the table of medians."""
    heads = ("matrices of", "how many", "elements", "ms a step", "ms of torch.optim.Muon", "apart after a step")
    rows = []
    for recipe in dict.fromkeys(steps.recipe for steps in measured):
        ours, theirs = (next(s for s in measured if (s.recipe, s.name) == (recipe, name)) for name in (OURS, THEIRS))
        times = [f"{1e3 * statistics.median(s.seconds):.1f}" for s in (ours, theirs)]
        rows.append([recipe, str(ours.matrices), f"{ours.elements:,}", *times, f"{ours.difference:.1e}"])
    made = f"{made_on(head)} `python -m benchmarks.muon` made this page.\n"
    return "\n".join(["# A step of Muon\n", made, *table(heads, rows, words=1)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    parser = Parser("benchmarks.muon", __doc__)
    parser.add_argument("--rounds", type=int, default=30, help="samples of each (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where MUON.json and .md go")
    given = parser.parse_args(argv)
    parser.at_least(given, rounds=3)
    parser.folder("--out", given.out)
    measured = [steps for recipe in RECIPES for steps in measure(recipe, given.rounds)]
    head, path = header(), given.out / "MUON.json"
    write(path, {"header": head}, measured, page(measured, head))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
