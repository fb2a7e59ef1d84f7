"""What checkpoints cost a run: python -m benchmarks.checkpointing [--preset tiny-decoder] [--pairs 8].

Blocks of the same number of steps are timed in pairs, in turn which comes first: one begins with a checkpoint, the
other has none. The block with one ends when its files are on the disk, so the cost holds all of it: the copy that
training waits for, and how much the writing thread takes from the steps beside it.

    cost  = median over the pairs of (seconds with - seconds without)
    share = cost / (train.checkpoint_every * seconds of a step)

Read next: `minillm/training/saving.py`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import header
from benchmarks.parser import Parser
from benchmarks.training.build import make_loader, make_objective, trainer_of
from minillm.config import build
from minillm.errors import InputError
from minillm.model.count import count_parameters
from minillm.model.transformer import build_model
from minillm.pretrain_config import PretrainConfig, preset_names, preset_table
from minillm.training.config import TrainConfig
from minillm.training.precision import choose_device
from minillm.training.records import Records

ASKED = 0.02  # of a small run's time, at the default interval


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one checkpoint. Seconds: step: of one step without a checkpoint (median over blocks); held: that training
    stands still while the copy is taken; cost: by the formula above, smallest and largest of the pairs beside it.

    parameters: of the model. megabytes: of the checkpoint on the disk, in 10**6 bytes.
    interval: steps between checkpoints.
    """

    preset: str
    parameters: int
    megabytes: float
    interval: int
    step: float
    held: float
    cost: float
    cost_least: float
    cost_most: float

    @property
    def share(self) -> float:
        """Of a run's time, when there is a checkpoint every `interval` steps."""
        return share_of(self.cost, self.step, self.interval)


def share_of(cost: float, step: float, interval: int) -> float:
    """Return which share of a run's time checkpoints take.

    >>> share_of(cost=0.5, step=0.1, interval=250)
    0.02
    """
    return cost / (interval * step)


def measure(config: PretrainConfig, preset: str, place: Path, *, pairs: int, steps: int, device: torch.device) -> Cost:
    """Return what a checkpoint of a run costs.

    Args:
        config: with a vocabulary size; the text is random tokens.
        preset: its name.
        place: a folder for the run.
        pairs: of blocks. steps: of a block.
        device: where to train.
    """
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    trainer = trainer_of(config, model, make_objective(config), make_loader(config), device, folder=place)
    trainer.folder.create()
    trainer.model.train()
    held: list[float] = []

    def block(records: Records, saving: bool) -> float:
        before = time.perf_counter()
        if saving:
            trainer.save(records)
            held.append(time.perf_counter() - before)
        for _ in range(steps):
            trainer.take_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        trainer.saver.finish()
        return time.perf_counter() - before

    with Records(trainer.folder, step=0) as records, trainer.saver:
        block(records, saving=True)  # warms up both
        held.clear()
        times: dict[bool, list[float]] = {True: [], False: []}
        for pair in range(pairs):
            for saving in (True, False) if pair % 2 else (False, True):
                times[saving].append(block(records, saving))
    costs = [with_one - without for with_one, without in zip(times[True], times[False], strict=True)]
    newest = trainer.folder.folder_of(trainer.folder.steps()[-1])
    return Cost(
        preset=preset,
        parameters=count_parameters(trainer.model),
        megabytes=sum(path.stat().st_size for path in newest.iterdir()) / 1e6,
        interval=TrainConfig().checkpoint_every,
        step=statistics.median(times[False]) / steps,
        held=statistics.median(held),
        cost=statistics.median(costs),
        cost_least=min(costs),
        cost_most=max(costs),
    )


def line(cost: Cost) -> str:
    """Return the result as a person reads it."""
    verdict = "below" if cost.share < ASKED else "NOT below"
    return (
        f"{cost.preset}: {cost.parameters:,} parameters, a checkpoint of {cost.megabytes:.1f} MB costs "
        f"{cost.cost:.3f} s ({cost.cost_least:.3f} to {cost.cost_most:.3f}), of which training stands still for "
        f"{cost.held:.3f} s; a step takes {cost.step:.4f} s: {cost.share:.2%} at one every {cost.interval} steps, "
        f"{verdict} the {ASKED:.0%} that was asked for"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cost and return the exit status: 0 whatever it is, 2 for wrong input."""
    parser = Parser("benchmarks.checkpointing", __doc__)
    parser.add_argument("--preset", choices=preset_names(), default="tiny-decoder", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=8, help="of blocks (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of a block (default %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the figures go besides")
    given = parser.parse_args(argv)
    parser.at_least(given, pairs=1, steps=1)
    if given.out is not None:
        if given.out.is_dir():
            parser.error(f"--out {given.out} is a folder; name a file in it")
        parser.folder("--out", given.out.parent)
    table: dict[str, Any] = preset_table(given.preset)
    table["model"] = table.get("model", {}) | {"vocab_size": table.get("tokenizer", {}).get("vocab_size", 2048)}
    try:
        config: PretrainConfig = build(PretrainConfig, table, source=f"preset {given.preset}")
        with tempfile.TemporaryDirectory() as place:
            cost = measure(
                config,
                given.preset,
                Path(place) / "run",
                pairs=given.pairs,
                steps=given.steps,
                device=choose_device(given.device),
            )
    except InputError as error:
        parser.error(str(error))
    print(line(cost))
    if given.out is not None:
        figures = {"header": header(), "cost": dataclasses.asdict(cost) | {"share": cost.share}}
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
