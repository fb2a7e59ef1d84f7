"""`minillm predict RUN --text T | --input F`: what a fine-tuned model says, one JSON object a line.

Read next: `minillm/finetune/predict.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.cli.arguments import Parser, add_settings, override_settings, print_json, say
from minillm.config import build, setting, to_table
from minillm.errors import InputError
from minillm.finetune.config import TableConfig

if TYPE_CHECKING:
    from minillm.finetune.predict import Finetuned
    from minillm.finetune.table import Table

ALIASES = ("data.train", "data.valid", "data.test")  # settings that mean nothing here


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """What of the run's section [task] may be another when answers are read."""

    max_answer_tokens: int | None = setting(None, "question_answering: tokens of an answer at most; none: the run's")
    candidates: int | None = setting(None, "question_answering: answers shown for a question; none: the run's")
    no_answer_threshold: float | None = setting(
        None,
        "question_answering: no answer is given where that scores more than so much above the best; none: the run's",
    )
    max_new_tokens: int | None = setting(None, "prompt_answer: tokens of an answer at most; none: the run's")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a table is read, and answers."""

    data: TableConfig
    task: AnswerConfig


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm predict",
        description="Say what a fine-tuned model makes of texts: one JSON object a line. Without --text and --input "
        "texts come from standard input, one a line; of a pair there is a tab between the two.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of minillm finetune")
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; give it again for several")
    parser.add_argument("--pair", action="append", metavar="TEXT", help="the second text of each --text, for pairs")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="a table: .csv, .tsv, .jsonl, .parquet or .txt, or a file of the task's own kind",
    )
    parser.checkpoint_option()
    parser.device_option()
    parser.json_option()
    add_settings(parser, PredictConfig, skip=ALIASES)
    arguments = parser.parse(argv)
    _check_sources(arguments)
    table: dict[str, object] = {}
    override_settings(table, arguments, PredictConfig, skip=ALIASES)
    config: PredictConfig = build(PredictConfig, table, source="the command line")

    from minillm.finetune.predict import load_finetuned
    from minillm.training.precision import choose_device

    device = choose_device(arguments.device, setting="--device")
    loaded = load_finetuned(arguments.run, arguments.checkpoint, device=device, task=to_table(config.task))
    rows = _rows(arguments, config.data, loaded)
    for answer in loaded.predict(rows, loaded.columns(rows, config.data), tell=say):
        print_json(answer)


def _check_sources(arguments: argparse.Namespace) -> None:
    """Raise InputError unless the words say in one way where the texts are."""
    if arguments.text and arguments.input:
        raise InputError("minillm predict takes one of --text and --input; leave one out")
    if arguments.pair and len(arguments.pair) != len(arguments.text or ()):
        raise InputError(
            f"--pair stands {len(arguments.pair)} times, --text {len(arguments.text or ())} times; pair them"
        )


def _rows(arguments: argparse.Namespace, config: TableConfig, loaded: Finetuned) -> Table:
    """Return the rows that are asked about."""
    from minillm.finetune.table import lines_of, read_table, text_table

    if arguments.pair and not loaded.task.facts.pairs:
        raise InputError(f"{arguments.run} was learnt on one text a row; leave out --pair")
    if arguments.text:
        return text_table(arguments.text, arguments.pair)
    if arguments.input is not None:
        return read_table(arguments.input, config, loaded.task.column_names, loaded.task.readers)
    lines = [line.rstrip("\r\n") for _, line in lines_of(sys.stdin.buffer, "standard input")]
    if not lines:
        raise InputError("standard input has no text; write one a line, or give --text or --input")
    if not loaded.task.facts.pairs:
        return text_table(lines, path="standard input")
    pairs = [line.partition("\t") for line in lines]
    return text_table([a for a, _, _ in pairs], [b for _, _, b in pairs], path="standard input")
