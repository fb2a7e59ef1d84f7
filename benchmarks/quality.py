"""How good a small recipe gets, and how soon: python -m benchmarks.quality --data tinyshakespeare.txt [--seeds 3].

Recipes of benchmarks/recipes and transformers' GPT-2 in nanoGPT's settings learn the same text by character and are
judged on all of its held-out part, in consecutive windows, every position. The clock runs from the first step to the
end of that judgement. Each run has a process of its own; contenders take turns, seed by seed, so let nothing else run.

QUALITY.json is written after each run, and a run that is in it is not made again. QUALITY.md is made from it alone.

Read next: `CPU_LADDER.md`, what was tried on the way to these recipes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import environment
from benchmarks.kept import made_on, read, spread, write
from benchmarks.machine import commit, header
from benchmarks.parser import Parser
from benchmarks.parts import table
from minillm.errors import InputError

COLUMNS = ("contender", "steps", "loss, nats per character", "seconds", "tokens/s", "seeds")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recipe, or the peer of its plain architecture under the same settings. dtype: train.compute_dtype."""

    name: str
    recipe: str
    peer: bool = False
    dtype: str = "auto"


CONTENDERS = (
    Contender(name="transformers' GPT-2, float32", recipe="shakespeare-char-small", peer=True, dtype="float32"),
    Contender(name="transformers' GPT-2, bfloat16", recipe="shakespeare-char-small", peer=True, dtype="bfloat16"),
    Contender(name="shakespeare-char-small", recipe="shakespeare-char-small"),
    Contender(name="shakespeare-char-small-quick", recipe="shakespeare-char-small-quick"),
    Contender(name="shakespeare-char-small-best", recipe="shakespeare-char-small-best"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model. loss: nats per character of the held-out text. seconds: of training and that evaluation."""

    contender: str
    seed: int
    steps: int
    loss: float
    seconds: float
    tokens_per_second: float
    commit: str


def train(contender: Contender, seed: int, data: Path, steps: int | None = None) -> Run:
    """Return what comes of one run, made in this process.

    Args:
        steps: in place of the recipe's: for tests.
    """
    import torch

    from benchmarks.training.build import trainer_of
    from benchmarks.training.peers import PeerObjective, build_peer
    from benchmarks.training.registration import filed
    from minillm.checkpoint.run_folder import RunFolder
    from minillm.config import build
    from minillm.data.corpora import open_corpus
    from minillm.material import gather
    from minillm.model.transformer import build_model
    from minillm.pretrain_config import PretrainConfig
    from minillm.tokenizer.training import train_tokenizer
    from minillm.training.precision import choose_device

    table = filed(contender.recipe)
    table["train"] |= {"seed": seed, "compute_dtype": contender.dtype} | ({} if steps is None else {"max_steps": steps})
    table["data"] |= {"input": str(data)}
    config: PretrainConfig = build(PretrainConfig, table, source=contender.recipe)
    corpus = open_corpus(config.data.input, valid_fraction=config.data.valid_fraction)
    tokenizer = train_tokenizer(config.tokenizer, corpus.texts("train"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    device = choose_device(config.train.device)
    torch.manual_seed(seed)
    model = build_peer("GPT2LMHeadModel", config.model) if contender.peer else build_model(config.model)
    with tempfile.TemporaryDirectory() as scratch:
        material = gather(config, RunFolder(scratch), tokenizer)
        objective = PeerObjective(material.objective) if contender.peer else material.objective
        trainer = trainer_of(config, model, objective, material.loader, device)
        model.train()
        start = time.perf_counter()
        for _ in range(config.train.max_steps):
            trainer.take_step()
        trained = time.perf_counter() - start
        loss = loss_of_peer(model, material) if contender.peer else material.evaluate(trainer.model).loss
        seconds = time.perf_counter() - start
    tokens = config.train.max_steps * config.train.batch_size * config.model.context
    return Run(
        contender=contender.name,
        seed=seed,
        steps=config.train.max_steps,
        loss=loss,
        seconds=seconds,
        tokens_per_second=tokens / trained,
        commit=commit(),
    )


def loss_of_peer(model: Any, material: Any) -> float:
    """Return the loss of a peer on all held-out text: the same windows and positions, by the peer's own mean."""
    from minillm.data.batch import IGNORED
    from minillm.evaluate import inference
    from minillm.material import EVAL_BATCH

    total, count = 0.0, 0
    with inference(model):
        for batch in material.held_out.eval_batches(EVAL_BATCH):
            prepared = material.judge.prepare(batch)
            number = int((prepared.targets != IGNORED).sum())
            total, count = total + float(model(prepared.tokens, prepared.targets)) * number, count + number
    return total / count


def in_a_process(contender: Contender, seed: int, data: Path) -> Run:
    """Return what comes of one run, made in a process of its own; end as that does where the input is wrong."""
    words = ["-m", "benchmarks.quality", "--data", str(data), "--one", contender.name, "--seeds", str(seed)]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, env=environment(), check=False)
    if done.returncode == 2:  # it has said what is wrong
        raise SystemExit(2)
    done.check_returncode()
    return Run(**json.loads(done.stdout))


def page(runs: Sequence[Run], head: Mapping[str, Any]) -> str:
    """Return the table, means ± sample deviations over the seeds."""
    lines = [
        "# Small recipes: how good, and how soon\n",
        "tinyshakespeare by character, 4 layers of width 128, context 64, 12 windows a step. Loss on the whole held-"
        "out tenth; seconds from the first step to the end of that evaluation.",
        made_on(head, (run.commit for run in runs)),
        "`python -m benchmarks.quality` made this page.\n",
    ]
    groups = [[run for run in runs if run.contender == contender.name] for contender in CONTENDERS]
    rows = [
        [
            group[0].contender,
            f"{group[0].steps:,}",
            spread([run.loss for run in group], 4),
            spread([run.seconds for run in group], 1),
            f"{statistics.mean(run.tokens_per_second for run in group):,.0f}",
            str(len(group)),
        ]
        for group in groups
        if group
    ]
    return "\n".join([*lines, *table(COLUMNS, rows, words=1)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    parser = Parser("benchmarks.quality", __doc__)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="tinyshakespeare as one text file")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender (default 3)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="contenders (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where QUALITY.json and .md go")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)  # what a process is told: --seeds is its seed
    given = parser.parse_args(argv)
    if not given.data.is_file():
        parser.error(f"--data {given.data} is no file; see data/tinyshakespeare/README.md for where the text is from")
    by_name = {contender.name: contender for contender in CONTENDERS}
    if given.one:
        from benchmarks.training.peers import NotInstalled

        try:
            print(json.dumps(dataclasses.asdict(train(by_name[given.one], given.seeds, given.data))))
        except InputError as error:
            parser.error(str(error))
        except NotInstalled as error:
            parser.error(f"{error}; install it, or choose other contenders with --only")
        return 0
    parser.at_least(given, seeds=1)
    parser.folder("--out", given.out)
    path, head = given.out / "QUALITY.json", header()
    runs = [Run(**run) for run in read(path)]
    for seed in range(given.seeds):
        for name in given.only:
            if not any((run.contender, run.seed) == (name, seed) for run in runs):
                runs.append(in_a_process(by_name[name], seed, given.data.resolve()))
                write(path, {"header": head}, runs, page(runs, head))
                print(runs[-1], file=sys.stderr, flush=True)
    print(path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
