"""Which masking an encoder learns best from: python -m benchmarks.masking [--steps 800] [--seeds 3].

tiny-encoder learns stdlib-docs by every kind of masking, at every rate, from several seeds, all else equal. All models
are asked the same on held-out text, whatever they learnt from: see `ObjectiveConfig.for_evaluation`.

MASKING.json is written after each run, and a run that is in it for as many steps is not made again: what was stopped
goes on where it was. MASKING.md is made from it alone. Seeds are the outer loop, so a table that is stopped early has
fewer seeds and no fewer rows.

Read next: `minillm/objectives/masking.py`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import apart, read, spread, write
from benchmarks.machine import commit, header
from benchmarks.parser import Parser
from benchmarks.parts import table
from minillm.config import build
from minillm.errors import InputError
from minillm.pretrain_config import PretrainConfig, preset_table

KINDS = ("token", "whole_word", "span")
RATES = (0.15, 0.3, 0.4)
PRESET, CORPUS = "tiny-encoder", "stdlib-docs"
TITLE = "# Masking: kind and rate against what was learnt\n"
COLUMNS = ("masking", "rate", "loss, nats per masked token", "right guesses, %", "seconds", "seeds")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model. loss: nats per masked token; accuracy: share of right guesses; both on all held-out text.

    seconds: of training. tokens_per_second: while training. commit: of the code.
    """

    masking: str
    rate: float
    seed: int
    steps: int
    commit: str
    loss: float
    accuracy: float
    seconds: float
    tokens_per_second: float


def train(masking: str, rate: float, seed: int, steps: int, *, table: Mapping[str, Any], scratch: Path) -> Run:
    """Return what comes of one run.

    Args:
        masking, rate, seed, steps: in place of those of `table`.
        table: all other settings, as a preset has them.
        scratch: a folder for the run, and for token shards that all runs share.
    """
    from minillm.pretrain import pretrain

    changes = {
        "objective": {"masking": masking, "rate": rate},
        "train": {"seed": seed, "max_steps": steps, "eval_every": 0, "checkpoint_every": 0},
        "data": {"cache": str(scratch / "tokens")},
    }
    settings = dict(table) | {section: table.get(section, {}) | new for section, new in changes.items()}
    config: PretrainConfig = build(PretrainConfig, settings, source=f"preset {PRESET}")
    result = pretrain(config, scratch / "run", overwrite=True)
    if result.evaluation is None or result.evaluation.masked_accuracy is None:
        raise KeyboardInterrupt  # Ctrl-C, which the trainer took for itself
    return Run(
        masking=masking,
        rate=rate,
        seed=seed,
        steps=steps,
        commit=commit(),
        loss=result.evaluation.loss,
        accuracy=result.evaluation.masked_accuracy,
        seconds=result.summary.seconds,
        tokens_per_second=result.summary.tokens_per_second,
    )


def page(runs: Sequence[Run], head: Mapping[str, Any]) -> str:
    """Return the table, the lowest mean loss first, each figure as mean ± standard deviation over the seeds."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.masking, run.rate), []).append(run)
    rows = sorted(groups.values(), key=lambda group: statistics.mean(run.loss for run in group))
    lines = [
        TITLE,
        f"`{PRESET}` on `{CORPUS}`, {runs[0].steps:,} steps, on {head['device']}, threads: {head['threads']},",
        f"PyTorch {head['versions']['torch']}, commit {', '.join(sorted({run.commit for run in runs}))}, "
        f"{head['date'][:10]}. Each model is asked for the same held-out tokens:",
        "single ones, 15 % of all, whatever it learnt from. Seconds are those of the quickest seed: other work on the "
        "machine held up the others more. `python -m benchmarks.masking` made this page.\n",
    ]
    cells = [
        [
            group[0].masking,
            f"{group[0].rate:g}",
            spread([run.loss for run in group], 3),
            spread([100 * run.accuracy for run in group], 1),
            f"{min(run.seconds for run in group):,.0f}",
            str(len(group)),
        ]
        for group in rows
    ]
    return "\n".join([*lines, *table(COLUMNS, cells, words=1), "", verdict(rows)]) + "\n"


def verdict(rows: Sequence[Sequence[Run]]) -> str:
    """Return which one is the best, and which others the seeds do not tell from it.

    Two are told apart where their means differ by more than twice the standard error of the difference.
    """
    best, *others = rows
    lowest = [run.loss for run in best]
    level = [group for group in others if not apart(lowest, [run.loss for run in group])]
    names = [f"{group[0].masking} at {group[0].rate:g}" for group in level]
    line = f"Lowest loss: {best[0].masking} at {best[0].rate:g}"
    if any(len(group) < 2 for group in rows):
        return f"{line}; one seed does not tell how far apart they are."
    return f"{line}, not told apart by these seeds from {', '.join(names)}." if names else f"{line}, by these seeds."


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    preset = preset_table(PRESET)
    parser = Parser("benchmarks.masking", __doc__)
    parser.add_argument(
        "--steps", type=int, default=preset["train"]["max_steps"], help="of each run (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind and rate (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of masking (default: all)")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="shares of tokens (default 0.15 0.3 0.4)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where MASKING.json and .md go")
    given = parser.parse_args(argv)
    parser.at_least(given, seeds=1)
    parser.folder("--out", given.out)
    path, head = given.out / "MASKING.json", header()
    runs = [Run(**run) for run in read(path) if run["steps"] == given.steps]
    table = preset | {"data": {"input": CORPUS}}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for seed in range(given.seeds):
                for kind, rate in itertools.product(given.kinds, given.rates):
                    if not any((run.masking, run.rate, run.seed) == (kind, rate, seed) for run in runs):
                        runs.append(train(kind, rate, seed, given.steps, table=table, scratch=Path(scratch)))
                        write(path, {"header": head, "preset": PRESET, "corpus": CORPUS}, runs, page(runs, head))
                        print(runs[-1], file=sys.stderr, flush=True)
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("benchmarks.masking: interrupted; the same command goes on with what is missing", file=sys.stderr)
        return 130
    print(path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
