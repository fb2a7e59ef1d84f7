"""What a fine-tuning run learns from and is judged on: tables as sequences, the task that they pose, batches.

The test table is read and checked here, so that a mistake in it shows before any training; what it says is asked once,
at the end, for the chosen checkpoint.

Read next: `source.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError
from minillm.finetune.augmentation import Augmenter, Text
from minillm.finetune.config import FinetuneConfig, TableConfig
from minillm.finetune.encoding import Sequences, TextEncoder
from minillm.finetune.loader import SequenceLoader, Varied
from minillm.finetune.table import Columns, Table, find_columns, read_table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.base import Task
from minillm.finetune.tasks.registry import TASKS
from minillm.finetune.tasks.texts import TextTask
from minillm.model.config import ModelConfig
from minillm.tokenizer.base import Tokenizer
from minillm.training.progress import Progress

EVAL_ROWS = 64  # sequences that are judged at once


@dataclass(frozen=True, kw_only=True)
class Split:
    """A table as the model meets it. loader: gives batches of `sequences`."""

    table: Table
    columns: Columns
    sequences: Sequences
    loader: SequenceLoader

    @property
    def texts(self) -> Sequence[Text]:
        """The text of each row, or its two texts."""
        first = self.table.texts(self.columns.text)
        if self.columns.pair is None:
            return first
        return list(zip(first, self.table.texts(self.columns.pair), strict=True))

    def keys(self) -> list[str]:
        """Return something for each row that is equal where all of its input is."""
        names = [name for name in (self.columns.text, self.columns.pair) if name is not None]
        return [repr(row) for row in zip(*(self.table.columns[name] for name in names), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Material:
    """The splits of a run and their task.

    splits: "train", "valid" and, where there is one, "test".
    notes: what was cut, which rows stand in two splits, and what else a reader of the figures should know.
    """

    task: Task
    splits: Mapping[str, Split]
    notes: Sequence[str]

    def predict(self, model: TaskModel, name: str) -> Any:
        """Return what the model says about a split."""
        split = self.splits[name]
        return self.task.predict(model, split.loader.eval_batches(EVAL_ROWS), split.sequences)

    def figures(self, model: TaskModel, name: str = "valid") -> Mapping[str, float | None]:
        """Return the model's figures on a split."""
        return self.task.figures(self.predict(model, name))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of rows and of what was cut, by split."""
        return {
            name: {
                "rows": len(split.table),
                "tokens": len(split.sequences.tokens),
                "rows cut": split.sequences.truncation.rows,
                "tokens cut": split.sequences.truncation.tokens,
            }
            for name, split in self.splits.items()
        }

    def card(self) -> dict[str, Any]:
        """Return what a run folder keeps of its tables."""
        counts = self.counts()
        return {
            name: {"path": split.table.path, "sha256": digest(split.table.path)} | counts[name]
            for name, split in self.splits.items()
        }


def gather(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    progress: Progress,
) -> Material:
    """Return the material of a run.

    Args:
        model: of the backbone: its context and kind are read.
        progress: is told of the notes.
    Raises:
        InputError: a table that does not do; the text names the file and the line.
    """
    kind = TASKS[config.task.name]
    paths = {name: getattr(config.data, name) for name in ("train", "valid", "test")}
    tables = {
        name: read_table(path, config.data, kind.column_names, kind.readers) for name, path in paths.items() if path
    }
    columns = {n: find_columns(t, config.data, kind.column_names, labelled=True) for n, t in tables.items()}
    for name, found in columns.items():
        if (found.pair is None) != (columns["train"].pair is None):
            raise InputError(
                f"{tables[name].path} has {'no' if found.pair is None else 'a'} second text and {tables['train'].path} "
                f"has {'one' if found.pair is None else 'none'}; name the columns with data.pair_column"
            )
    task = kind.learn(config.task, tables["train"], columns["train"])
    encoder = TextEncoder(tokenizer, model, config.text, pairs=task.facts.pairs)
    splits, notes = {}, []
    for name, table in tables.items():
        sequences = task.encode(table, columns[name], encoder, labelled=True)
        loader = SequenceLoader(
            sequences, batch_size=config.train.batch_size, pad=tokenizer.specials.pad, seed=config.train.seed
        )
        splits[name] = Split(table=table, columns=columns[name], sequences=sequences, loader=loader)
        progress.note(f"{name}: {len(table):,} rows, {len(sequences.tokens):,} tokens in {len(sequences):,} sequences")
        notes += notes_on(name, splits[name], task, encoder)
    if config.augmentation.share:
        splits["train"].loader.varied = augmented(splits["train"], task, config, encoder)
    notes += overlaps(splits)
    for note in notes:
        progress.note(note)
    return Material(task=task, splits=splits, notes=notes)


def augmented(train: Split, task: Task, config: FinetuneConfig, encoder: TextEncoder) -> Varied:
    """Return what makes the training texts of an epoch, with their targets.

    Raises:
        InputError: a task whose targets stand at words, or texts in windows.
    """
    if not isinstance(task, TextTask) or config.text.long_texts == "windows":
        what = task.name if not isinstance(task, TextTask) else "text.long_texts = windows"
        raise InputError(f"augmentation.share changes whole texts and does not go with {what}; set it to 0")
    texts, targets = train.texts, train.sequences.targets
    assert targets is not None
    augmenter = Augmenter(config.augmentation, texts, seed=config.train.seed)

    def varied(places: NDArray[np.int64], epochs: NDArray[np.int64]) -> Sequences:
        changed = [augmenter.text(texts[int(p)], epoch=int(e), row=int(p)) for p, e in zip(places, epochs, strict=True)]
        first = [text if isinstance(text, str) else text[0] for text in changed]
        second = [text[1] for text in changed if not isinstance(text, str)]
        return encoder.sequences(first, second or None).with_targets(targets[places])

    return varied


def notes_on(name: str, split: Split, task: Task, encoder: TextEncoder) -> list[str]:
    """Return what the user should know about a split, a line each."""
    rows, cut, lines = len(split.table), split.sequences.truncation, []
    if cut.rows:
        way_out = "; text.long_texts = windows reads all of them" if isinstance(task, TextTask) else ""
        lines.append(
            f"{name}: {cut.rows:,} of {rows:,} rows do not fit {encoder.max_length} tokens: {cut.tokens:,} tokens were "
            f"cut{way_out}"
        )
    return lines + [f"{name}: {note}" for note in split.sequences.notes]


def overlaps(splits: Mapping[str, Split]) -> list[str]:
    """Return a warning for every two splits that share texts: figures on such rows flatter."""
    texts = {name: split.keys() for name, split in splits.items()}
    lines = []
    for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
        if first in texts and second in texts:
            known = set(texts[first])
            twice = sum(text in known for text in texts[second])
            if twice:
                lines.append(
                    f"warning: {twice:,} of {len(texts[second]):,} rows of {splits[second].table.path} stand in "
                    f"{splits[first].table.path} too; its figures flatter"
                )
    return lines


def digest(path: str) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_unchanged(data: TableConfig, card: Mapping[str, Any], folder: object) -> None:
    """Raise InputError where a table is not what the run began with."""
    for name, kept in card.items():
        path = getattr(data, name)
        try:
            same = digest(path) == kept["sha256"]
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; bring back the table of {folder}") from error
        if not same:
            raise InputError(
                f"{path} is not what {folder} was begun with (its digest differs); bring the old table back, "
                f"or begin a new run"
            )
