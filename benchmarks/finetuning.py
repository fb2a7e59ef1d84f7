"""What each way to fine-tune is worth: python -m benchmarks.finetuning --data DIR [--seeds 3].

DIR holds train.tsv, dev.tsv and test.tsv of a text and a label. An encoder and a decoder of one small shape learn the
texts of the training table first, without their labels; then every method fine-tunes them by `minillm finetune`, in a
process of its own, whose memory is read when it ends. Of three learning rates the one that is best on dev.tsv with
seed 0 is taken; the other seeds run at that rate; test.tsv decides nothing.

FINETUNING.json is written after each run, and what is in it is not run again: what was stopped goes on where it was.
FINETUNING.md is made from it alone.

Read next: `minillm/finetune/run.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import environment
from benchmarks.kept import apart, read, spread, write
from benchmarks.machine import commit, header

SIZES = ("--model.num_layers", "2", "--model.width", "128", "--model.num_heads", "4", "--model.context", "128")
BIASES = ("--model.bias", "true")  # of which BitFit trains nothing else
STEPS = {"encoder": 3000, "decoder": 1500}  # of pretraining
VOCABULARY = "4096"
RANDOM, LOW, MIDDLE, HIGH = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1)
COLUMNS = ("backbone", "what learns", "parameters", "rate", "dev, %", "test, %", "seconds", "examples/s", "peak MiB")


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

    valid, test: accuracies. parameters: that learn. seconds: of training. peak_bytes: of the whole process.
    baselines: name -> accuracy on the test table of what learns from the words alone.
    """

    backbone: str
    method: str
    rate: float
    seed: int
    valid: float
    test: float
    parameters: int
    seconds: float
    examples_per_second: float
    peak_bytes: int
    baselines: Mapping[str, float]
    commit: str


class Laboratory:
    """Where the models are: backbones are pretrained once, runs are made and thrown away."""

    def __init__(self, data: Path, folder: Path, epochs: float) -> None:
        self.data, self.folder, self.epochs = data, folder, epochs

    def backbone(self, kind: str) -> Path:
        """Return the run folder of the pretrained encoder or decoder, which is trained if it is not there."""
        run = self.folder / kind
        if not (run / "checkpoints" / "latest").exists():
            texts = self.folder / "texts.txt"
            lines = (self.data / "train.tsv").read_text(encoding="utf-8").splitlines()
            texts.write_text("".join(f"{line.partition(chr(9))[0]}\n" for line in lines), encoding="utf-8")
            words = ["--preset", f"tiny-{kind}", *SIZES, *BIASES, "--tokenizer.vocab_size", VOCABULARY, "--overwrite"]
            words += [
                "--train.max_steps",
                str(STEPS[kind]),
                *(["--objective.rate", "0.3"] if kind == "encoder" else []),
            ]
            told(["pretrain", *words, "--data.input", str(texts), "--out", str(run), "--json"])
        return run

    def run(self, method: Method, rate: float, seed: int) -> Run:
        """Return what comes of one fine-tuning."""
        out = self.folder / "run"
        tables = [
            f"--{name}={self.data / file}.tsv"
            for name, file in zip(("train", "valid", "test"), ("train", "dev", "test"), strict=True)
        ]
        words = [
            "finetune",
            str(self.backbone(method.backbone)),
            *tables,
            *method.words,
            "--out",
            str(out),
            "--overwrite",
        ]
        words += ["--optim.learning_rate", str(rate), "--train.seed", str(seed), "--train.epochs", str(self.epochs)]
        said, peak = told([*words, "--quiet", "--json"])
        report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
        return Run(
            backbone=method.backbone,
            method=method.name,
            rate=rate,
            seed=seed,
            valid=said["valid"]["accuracy"],
            test=said["test"]["accuracy"],
            parameters=report["trained"]["all"]["learning"],
            seconds=said["seconds"],
            examples_per_second=said["examples_per_second"],
            peak_bytes=peak,
            baselines={name: splits["test"]["accuracy"] for name, splits in said["baselines"].items()},
            commit=commit(),
        )


def told(words: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return the JSON object that a command of minillm prints last, and the most memory that it had, in bytes.

    Raises:
        RuntimeError: it ended otherwise than well.
    """
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen([sys.executable, "-m", "minillm", *words], stdout=printed, env=environment())
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
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


def of(runs: Sequence[Run], method: Method) -> list[Run]:
    """Return the runs of a method."""
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


def page(runs: Sequence[Run], head: Mapping[str, Any], epochs: float) -> str:
    """Return the table: means ± sample deviations over the seeds at each method's chosen rate."""
    lines = [
        "# Fine-tuning: each method beside the others\n",
        f"2 layers of width 128, vocabulary {VOCABULARY}, pretrained on the texts of the training table without their "
        f"labels: the encoder for {STEPS['encoder']:,} steps, the decoder for {STEPS['decoder']:,}. {epochs:g} epochs;"
        " of three rates that which is best on dev with seed 0.",
        f"On {head['device']} with {head['threads']} threads, PyTorch {head['versions']['torch']}, commit "
        f"{', '.join(sorted({run.commit for run in runs}))}, {head['date'][:10]}.",
        "`python -m benchmarks.finetuning` made this page.\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 2),
    ]
    lines += [f"| | {name} | | | | {100 * accuracy:.1f} | | | |" for name, accuracy in runs[0].baselines.items()]
    for method in METHODS:
        rate = best_rate(runs, method)
        group = [run for run in of(runs, method) if run.rate == rate]
        if not group:
            continue
        cells = [
            method.backbone,
            method.name,
            f"{group[0].parameters:,}",
            f"{rate:g}",
            spread([100 * run.valid for run in group], 1),
            spread([100 * run.test for run in group], 1),
            spread([run.seconds for run in group], 0),
            spread([run.examples_per_second for run in group], 0),
            f"{statistics.mean(run.peak_bytes for run in group) / 2**20:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts(runs)]) + "\n"


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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetuning", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method at its best rate (default 3)")
    parser.add_argument("--epochs", type=float, default=3.0, help="of each run (default 3)")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks-finetuning"), help="folder for the models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where FINETUNING.json and .md go")
    given = parser.parse_args(argv)
    for name in ("train", "dev", "test"):
        if not (given.data / f"{name}.tsv").is_file():
            parser.error(f"--data {given.data} has no {name}.tsv; name a folder with train.tsv, dev.tsv and test.tsv")
    if given.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {given.seeds}")
    for folder in (given.out, given.work):
        folder.mkdir(parents=True, exist_ok=True)
    path, head = given.out / "FINETUNING.json", header()
    runs = [Run(**run) for run in read(path)]
    laboratory = Laboratory(given.data.resolve(), given.work.resolve(), given.epochs)
    while (wanted := missing(runs, given.seeds)) is not None:
        runs.append(laboratory.run(*wanted))
        write(path, {"header": head, "epochs": given.epochs}, runs, page(runs, head, given.epochs))
        print(runs[-1], file=sys.stderr, flush=True)
    print(path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
