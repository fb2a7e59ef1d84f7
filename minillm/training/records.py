"""metrics.csv, which the same seed gives byte for byte, and timing.csv, which holds all clock readings.

    metrics.csv  step            optimiser steps done, this one included
                 tokens          tokens seen until then, padding not counted
                 loss            mean over the targets of this one step's batch, in nats, before its update; no extras
                 learning_rate   used by this step's update
                 grad_norm       of this step's gradient, before clipping; inf where float16 overflowed
                 valid_loss      of the weights after this step, of their means with train.ema_decay; empty where they
                                 were not evaluated
                 valid_...       other figures of that evaluation; fine-tuning has them
    timing.csv   step            as above
                 seconds         of the run until then, evaluation and saving included, pauses between resumes not
                 tokens_per_second   since the last row, evaluation and saving left out
                 mfu             see throughput.py; empty where the model's FLOPs are not known

A step without targets leaves loss and grad_norm empty.

Read next: `throughput.py`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from minillm.checkpoint.files import explained, reason, write_text
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError

METRICS = ("step", "tokens", "loss", "learning_rate", "grad_norm", "valid_loss")
TIMING = ("step", "seconds", "tokens_per_second", "mfu")


class Records:
    """The two open CSV files of a run, cut back to a step when it is resumed."""

    def __init__(self, folder: RunFolder, *, step: int, figures: Sequence[str] = ()) -> None:
        """Open both files; rows after `step` belong to steps that will be taken again, and go.

        Args:
            folder: of the run; it must exist.
            step: optimiser steps done; 0: both files begin anew.
            figures: names of the evaluation's figures beside the loss.
        Raises:
            InputError: a file cannot be written.
        """
        self._folder, self._figures = folder, tuple(figures)
        metrics = (*METRICS, *(f"valid_{name}" for name in figures))
        for path, columns in ((folder.metrics_path, metrics), (folder.timing_path, TIMING)):
            write_text(path, cut(path, columns, step), safe=folder.safe())
        rows = read_columns(folder.timing_path)["seconds"]
        self.seconds_before = rows[-1] if rows and rows[-1] is not None else 0.0
        self._metrics, self._timing = self._open(folder.metrics_path), self._open(folder.timing_path)

    def _open(self, path: Path) -> TextIO:
        with explained(path, self._folder.safe()):
            return path.open("a", encoding="utf-8", newline="")

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for file, path in ((self._metrics, self._folder.metrics_path), (self._timing, self._folder.timing_path)):
            try:
                with explained(path, self._folder.safe()):
                    file.close()
            except InputError:  # the rest of a row that a full disk refused before is refused again
                if kind is None:
                    raise

    def metrics(
        self,
        *,
        step: int,
        tokens: int,
        loss: float | None,
        learning_rate: float,
        grad_norm: float | None,
        valid: Mapping[str, float | None],
    ) -> None:
        """Append a row to metrics.csv and hand it to the system, so that a crash of this process does not lose it.

        Args:
            valid: figures of the evaluation after this step by name, "loss" among them; empty where there was none.
        """
        figures = (valid.get(name) for name in ("loss", *self._figures))
        self._append(self._metrics, self._folder.metrics_path, step, tokens, loss, learning_rate, grad_norm, *figures)

    def timing(self, *, step: int, seconds: float, tokens_per_second: float, mfu: float | None) -> None:
        """Append a row to timing.csv; `seconds` counts from the start of this session, earlier ones are added."""
        seconds = round(self.seconds_before + seconds, 3)
        rate, share = round(tokens_per_second, 1), None if mfu is None else round(mfu, 5)
        self._append(self._timing, self._folder.timing_path, step, seconds, rate, share)

    def _append(self, file: TextIO, path: Path, *values: float | None) -> None:
        with explained(path, self._folder.safe()):
            file.write(",".join(written(value) for value in values) + "\n")
            file.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk: a checkpoint must not be newer than the rows before it."""
        with explained(self._folder.metrics_path, self._folder.safe()):
            for file in (self._metrics, self._timing):
                os.fsync(file.fileno())


class NoRecords:
    """The records of a process that is not the first of its run: there are none."""

    def __enter__(self) -> NoRecords:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def metrics(self, **row: object) -> None:
        """Write nothing."""

    def timing(self, **row: object) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Wait for nothing."""


def written(value: float | None) -> str:
    """Return a number as the CSVs hold it: 9 significant digits, which tell any two float32 numbers apart."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def cut(path: Path, columns: tuple[str, ...], step: int) -> str:
    """Return the header and the whole rows up to `step` of a CSV file that may not exist or end in half a row."""
    header = ",".join(columns) + "\n"
    if step == 0 or not path.exists():
        return header
    with explained(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines[1:] if line.endswith("\n") and line.count(",") == len(columns) - 1]
    return header + "".join(line for line in whole if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step)


def read_columns(path: Path) -> dict[str, list[float | None]]:
    """Return the columns of metrics.csv or timing.csv; None where a cell is empty.

    Raises:
        InputError: no such file, or it is not such a table.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> _ = file.write_text("step,valid_loss\\n1,\\n2,3.5\\n")
    >>> read_columns(file)
    {'step': [1.0, 2.0], 'valid_loss': [None, 3.5]}
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or (), list(reader)
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in names}
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}; remove the row, or the file") from error
