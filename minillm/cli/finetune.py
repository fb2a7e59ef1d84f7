"""`minillm finetune RUN --train F --valid F --test F`: from a pretrained model and labelled texts to a classifier.

Read next: `minillm/finetune/config.py`, `minillm/finetune/scope_config.py` and `minillm/finetune/learning_rate.py` for
the settings; then `minillm/finetune/material.py`, `minillm/finetune/run.py` and `minillm/finetune/seeds.py`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.cli.arguments import Parser, add_settings, override_settings, print_json, say
from minillm.config import build, override, read_toml
from minillm.errors import InputError, Stopped
from minillm.finetune.config import FinetuneConfig
from minillm.training.distributed_config import is_first, is_launched

TABLES = ("train", "valid", "test")
ALIASES = ("init", "random", *(f"data.{name}" for name in TABLES))  # settings that have an option of another name


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm finetune",
        description="Teach a pretrained model a task from tables of labelled texts.",
        epilog="QUICK=1 in the environment ends every run after 20 more steps: a rehearsal.",
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the run folder of a pretrained model")
    parser.add_argument("--train", metavar="FILE", help="table to learn from: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--valid", metavar="FILE", help="table that decides when to stop, and which checkpoint is best")
    parser.add_argument("--test", metavar="FILE", help="table that the best checkpoint is judged on, once, at the end")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the run folder (default: runs/, RUN's and FILE's name)"
    )
    parser.add_argument("--random", action="store_true", help="take only the shape of RUN's model: weights at random")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="a file with settings, which options override")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that stands in --out")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run from its latest checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no live line and no notes")
    parser.json_option()
    add_settings(parser, FinetuneConfig, skip=ALIASES)
    arguments = parser.parse(argv)
    _check_sources(arguments)

    from minillm.checkpoint.run_folder import RunFolder
    from minillm.finetune import run, seeds  # import torch: after the words were found right
    from minillm.training.progress import Progress

    progress = Progress(quiet=arguments.quiet or not is_first())
    if arguments.resume is not None:
        overrides: dict[str, Any] = {}
        override_settings(overrides, arguments, FinetuneConfig, skip=ALIASES)
        several = run.changed(RunFolder(arguments.resume), overrides).seeds > 1
        _check_seeds(several)
        result = (seeds.resume_seeds if several else run.resume)(arguments.resume, overrides, progress=progress)
    else:
        config = _config(arguments)
        _check_seeds(config.seeds > 1)
        stem = f"{config.preset or Path(config.init).name}-{Path(config.data.train).stem}"
        out = arguments.out or Path("runs") / stem
        begin = seeds.finetune_seeds if config.seeds > 1 else run.finetune
        result = begin(config, out, overwrite=arguments.overwrite, progress=progress)
    if arguments.json and is_first():
        print_json(result.json())
    if isinstance(result, run.Result) and result.summary.signal is not None:
        raise Stopped(128 + result.summary.signal)
    if not arguments.json and not arguments.quiet and is_first():
        say(f'next: minillm predict {shlex.quote(str(result.run))} --text "..."')


def _check_seeds(several: bool) -> None:
    """Raise InputError for several seeds in several processes: they would share each run, one after the other."""
    if several and is_launched():
        raise InputError("seeds above 1 does not go with torchrun; begin a run for each, with its own train.seed")


def _check_sources(arguments: argparse.Namespace) -> None:
    """Raise InputError where --resume comes with words that only begin a run."""
    if arguments.resume is None:
        return
    for word in ("run", "preset", "config", "out", "overwrite", "random", *TABLES):
        if getattr(arguments, word, None):
            shown = "RUN" if word == "run" else f"--{word}"
            raise InputError(f"--resume goes on with the run as it was begun; leave out {shown}")


def _config(arguments: argparse.Namespace) -> FinetuneConfig:
    """Return the settings of a new run."""
    table: dict[str, Any] = {} if arguments.config is None else read_toml(arguments.config)
    override_settings(table, arguments, FinetuneConfig, skip=ALIASES)
    if arguments.run is not None:
        table["init"] = str(arguments.run)
    if arguments.random:
        table["random"] = True
    for name in TABLES:
        if getattr(arguments, name) is not None:
            override(table, f"data.{name}", getattr(arguments, name))
    config: FinetuneConfig = build(FinetuneConfig, table, source=str(arguments.config or "the command line"))
    config.check()
    return config
