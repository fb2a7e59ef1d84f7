"""What each way to fine-tune is worth: python -m benchmarks.finetuning --data DIR [--seeds 3] [--rounds 3].

DIR holds train.tsv, dev.tsv and test.tsv of a text and a label. An encoder and a decoder of one small shape learn the
texts of the training table first, without their labels; then every method fine-tunes them by `minillm finetune`, in a
process of its own. Of three learning rates the one that is best on dev.tsv with seed 0 is taken; the other seeds run
at that rate; test.tsv decides nothing. What a method costs is measured apart, so that accuracies may come from a busy
machine: the methods take turns of one epoch each, and the memory of a process is read when it ends.

FINETUNING.json is written after each run, and what is in it is not run again: what was stopped goes on where it was,
on the same tables and for as many epochs.
FINETUNING.md is made from it alone.

Read next: `minillm/finetune/run.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.child import environment
from benchmarks.kept import apart, read, spread, write
from benchmarks.machine import commit, header
from benchmarks.parser import Parser
from benchmarks.parts import table

SIZES = ("--model.num_layers", "2", "--model.width", "128", "--model.num_heads", "4", "--model.context", "128")
BIASES = ("--model.bias", "true")  # of which BitFit trains nothing else
STEPS = {"encoder": 3000, "decoder": 1500}  # of pretraining
VOCABULARY = "4096"
TABLES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}  # option of `minillm finetune` -> file
RANDOM, LOW, MIDDLE, HIGH = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1)
COLUMNS = ("backbone", "what learns", "parameters", "rate", "dev, %", "test, %", "examples/s", "peak MiB")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune. backbone: encoder or decoder. words: of `minillm finetune`. rates: that are tried."""

    name: str
    backbone: str
    words: tuple[str, ...]
    rates: tuple[float, ...]


def adapter(kind: str, rates: tuple[float, ...], *words: str, name: str = "") -> Method:
    """Return an adapter on the encoder."""
    return Method(name=name or kind, backbone="encoder", words=("--adapter.kind", kind, *words), rates=rates)


METHODS = (
    Method(name="everything, from random weights", backbone="encoder", words=("--random",), rates=RANDOM),
    Method(name="everything", backbone="encoder", words=(), rates=LOW),
    Method(name="the head alone", backbone="encoder", words=("--scope.top_layers", "0"), rates=HIGH),
    adapter("lora", MIDDLE),
    adapter("lora", MIDDLE, "--adapter.dora", "true", name="dora"),
    adapter("adalora", MIDDLE),
    adapter("houlsby", MIDDLE),
    adapter("pfeiffer", MIDDLE),
    adapter("prefix", HIGH),
    adapter("ia3", HIGH),
    adapter("bitfit", HIGH),
    Method(name="everything, from random weights", backbone="decoder", words=("--random",), rates=RANDOM),
    Method(name="everything", backbone="decoder", words=(), rates=LOW),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tuning.

    valid, test: accuracies. parameters: that learn. baselines: name -> accuracy on the test table of what learns from
    the words alone.
    """

    backbone: str
    method: str
    rate: float
    seed: int
    valid: float
    test: float
    parameters: int
    baselines: Mapping[str, float]
    commit: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one epoch takes. examples_per_second: of training alone. peak_bytes: of the whole process."""

    backbone: str
    method: str
    turn: int
    examples_per_second: float
    peak_bytes: int


Kept = TypeVar("Kept", Run, Cost)


class Laboratory:
    """Where the models are: backbones are pretrained once, runs are made and thrown away."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def backbone(self, kind: str) -> Path:
        """Return the run folder of the pretrained encoder or decoder, which is trained if it is not there."""
        run = self.folder / kind
        if not (run / "checkpoints" / "latest").exists():
            texts = self.folder / "texts.txt"
            lines = (self.data / "train.tsv").read_text(encoding="utf-8").splitlines()
            texts.write_text("".join(f"{line.partition(chr(9))[0]}\n" for line in lines), encoding="utf-8")
            words = ["--preset", f"tiny-{kind}", *SIZES, *BIASES, "--tokenizer.vocab_size", VOCABULARY, "--overwrite"]
            words += ["--train.max_steps", str(STEPS[kind])]
            words += ["--objective.rate", "0.3"] if kind == "encoder" else []
            told(["pretrain", *words, "--data.input", str(texts), "--out", str(run), "--json"])
        return run

    def run(self, method: Method, rate: float, seed: int, epochs: float) -> Run:
        """Return what comes of one fine-tuning."""
        said, _ = self.finetune(method, rate, seed, epochs)
        report = json.loads((self.folder / "run" / "report" / "report.json").read_text(encoding="utf-8"))
        return Run(
            backbone=method.backbone,
            method=method.name,
            rate=rate,
            seed=seed,
            valid=said["valid"]["accuracy"],
            test=said["test"]["accuracy"],
            parameters=report["trained"]["all"]["learning"],
            baselines={name: splits["test"]["accuracy"] for name, splits in said["baselines"].items()},
            commit=commit(),
        )

    def cost(self, method: Method, rate: float, turn: int) -> Cost:
        """Return what one epoch takes."""
        said, peak = self.finetune(method, rate, 0, epochs=1.0)
        return Cost(
            backbone=method.backbone,
            method=method.name,
            turn=turn,
            examples_per_second=said["examples_per_second"],
            peak_bytes=peak,
        )

    def finetune(self, method: Method, rate: float, seed: int, epochs: float) -> tuple[dict[str, Any], int]:
        """Return what a fine-tuning into the folder `run` says, and the most memory that it had, in bytes."""
        words = [*method.words, "--optim.learning_rate", str(rate), "--train.epochs", str(epochs)]
        return finetuned(self.backbone(method.backbone), self.data, words, seed, self.folder / "run")


def check_tables(parser: Parser, data: Path) -> None:
    """Refuse a folder without the three tables."""
    for name in TABLES.values():
        if not (data / name).is_file():
            parser.error(f"--data {data} has no {name}; name a folder with train.tsv, dev.tsv and test.tsv")


def digest_of(data: Path) -> str:
    """Return what tells one set of tables from another: the SHA-256 of the three, end to end, in short."""
    return hashlib.sha256(b"".join((data / name).read_bytes() for name in TABLES.values())).hexdigest()[:16]


def finetuned(model: Path, data: Path, words: Sequence[str], seed: int, out: Path) -> tuple[dict[str, Any], int]:
    """Return what `minillm finetune` says of a model on the tables in `data`, and as `told` its memory; fills `out`."""
    tables = [f"--{option}={data / name}" for option, name in TABLES.items()]
    words = ["finetune", str(model), *tables, *words, "--train.seed", str(seed)]
    return told([*words, "--out", str(out), "--overwrite", "--quiet", "--json"])


def told(words: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return the JSON object that a command of minillm prints last, and the most memory that it had, in bytes.

    Raises:
        SystemExit: of status 2, as its own was: it has said what is wrong with the input.
        RuntimeError: it ended with a defect, or by a signal.
    """
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen([sys.executable, "-m", "minillm", *words], stdout=printed, env=environment())
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode == 2:
            raise SystemExit(2)
        if child.returncode:
            raise RuntimeError(f"minillm {' '.join(words)} ended with status {child.returncode}")
        printed.seek(0)
        return json.loads(printed.read().splitlines()[-1]), used.ru_maxrss * 1024


def best_rate(runs: Sequence[Run], method: Method) -> float | None:
    """Return the rate with the best validation accuracy at seed 0, of equals the lowest; None before all were tried."""
    tried = {run.rate: run.valid for run in of(runs, method) if run.seed == 0}
    if any(rate not in tried for rate in method.rates):
        return None
    return max(sorted(method.rates), key=lambda rate: tried[rate])


def of(runs: Sequence[Kept], method: Method) -> list[Kept]:
    """Return the runs, or the costs, of a method."""
    return [run for run in runs if (run.backbone, run.method) == (method.backbone, method.name)]


def missing(runs: Sequence[Run], seeds: int) -> tuple[Method, float, int] | None:
    """Return the next run to make: rates of all methods first, then seed by seed; None where all are there."""
    for seed in range(seeds):
        for method in METHODS:
            best = best_rate(runs, method)
            rates = method.rates if seed == 0 else (() if best is None else (best,))
            for rate in rates:
                if not any((run.rate, run.seed) == (rate, seed) for run in of(runs, method)):
                    return method, rate, seed
    return None


def page(runs: Sequence[Run], costs: Sequence[Cost], about: Mapping[str, Any]) -> str:
    """Return the table: means ± sample deviations over the seeds at each method's chosen rate, and medians of turns.

    Args:
        about: header and epochs.
    """
    head = about["header"]
    lines = [
        "# Fine-tuning: each method beside the others\n",
        f"2 layers of width 128, vocabulary {VOCABULARY}, pretrained on the texts of the training table without their "
        f"labels: the encoder for {STEPS['encoder']:,} steps, the decoder for {STEPS['decoder']:,}. "
        f"{about['epochs']:g} epochs; of three rates that which is best on dev with seed 0.",
        f"On {head['device']}, PyTorch {head['versions']['torch']}, commit "
        f"{', '.join(sorted({run.commit for run in runs}))}, {head['date'][:10]}.",
        f"Training examples/s: medians of {max((cost.turn for cost in costs), default=0)} turns of one epoch with "
        f"{head['threads']} threads. Memory: the most that the whole process had, PyTorch included.",
        "`python -m benchmarks.finetuning` made this page.\n",
    ]
    rows = [["", name, "", "", "", f"{100 * accuracy:.1f}", "", ""] for name, accuracy in runs[0].baselines.items()]
    for method in METHODS:
        rate = best_rate(runs, method)
        group, cost = [run for run in of(runs, method) if run.rate == rate], of(costs, method)
        if group:
            cells = [
                method.backbone,
                method.name,
                f"{group[0].parameters:,}",
                f"{rate:g}",
                spread([100 * run.valid for run in group], 1),
                spread([100 * run.test for run in group], 1),
                f"{statistics.median(c.examples_per_second for c in cost):,.0f}" if cost else "",
                f"{statistics.median(c.peak_bytes for c in cost) / 2**20:,.0f}" if cost else "",
            ]
            rows.append(cells)
    return "\n".join([*lines, *table(COLUMNS, rows, words=2), "", *verdicts(runs)]) + "\n"


def verdicts(runs: Sequence[Run]) -> list[str]:
    """Return for encoder and decoder whether pretraining shows, by the seeds that were run."""
    said = []
    for scratch, pretrained in ((METHODS[0], METHODS[1]), (METHODS[-2], METHODS[-1])):
        low, high = ([r.test for r in of(runs, m) if r.rate == best_rate(runs, m)] for m in (scratch, pretrained))
        if low and high:
            gain = 100 * (statistics.mean(high) - statistics.mean(low))
            words = "more" if apart(low, high) else "not more"
            said.append(
                f"Pretraining gives the {pretrained.backbone} {gain:+.1f} points on test, {words} than two standard "
                "errors of the difference."
            )
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    parser = Parser("benchmarks.finetuning", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method at its best rate (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of one epoch that tell the cost (default 3)")
    parser.add_argument("--epochs", type=float, default=3.0, help="of each run (default 3)")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks-finetuning"), help="folder for the models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where FINETUNING.json and .md go")
    given = parser.parse_args(argv)
    check_tables(parser, given.data)
    parser.at_least(given, seeds=1, rounds=0)
    if not 0 < given.epochs < float("inf"):  # `minillm finetune` would say so when both models are pretrained
        parser.error(f"--epochs must be above 0 and finite, got {given.epochs}")
    parser.folder("--out", given.out)
    parser.folder("--work", given.work)
    path = given.out / "FINETUNING.json"
    about = {"header": header(), "epochs": given.epochs, "data": digest_of(given.data)}
    if path.exists() and any(read(path, name) != about[name] for name in ("epochs", "data")):
        parser.error(f"{path} has runs of other epochs or on other tables; choose another --out, or remove it")
    runs, costs = [Run(**run) for run in read(path)], [Cost(**cost) for cost in read(path, "costs")]

    def keep() -> None:
        write(path, {**about, "costs": [dataclasses.asdict(cost) for cost in costs]}, runs, page(runs, costs, about))

    laboratory = Laboratory(given.data.resolve(), given.work.resolve())
    while (wanted := missing(runs, given.seeds)) is not None:
        runs.append(laboratory.run(*wanted, given.epochs))
        keep()
        print(runs[-1], file=sys.stderr, flush=True)
    for turn in range(1, given.rounds + 1):
        for method in METHODS:
            if not any(cost.turn == turn for cost in of(costs, method)):
                costs.append(laboratory.cost(method, best_rate(runs, method) or method.rates[0], turn))
                keep()
                print(costs[-1], file=sys.stderr, flush=True)
    print(path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
