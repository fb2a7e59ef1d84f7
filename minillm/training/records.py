"""metrics.csv, which the same seed gives byte for byte, and timing.csv, which holds all clock readings.

    metrics.csv  step            optimiser steps done, this one included
                 tokens          tokens seen until then, padding not counted
                 loss            mean over the targets of this one step's batch, in nats, before its update; no extras
                 learning_rate   used by this step's update
                 grad_norm       of this step's gradient, before clipping; inf where float16 overflowed
                 loss_z, grad_norm_z   how many deviations these two are above the last steps' mean: see deviation.py
                 valid_loss      of the weights after this step, of their means with train.ema_decay; empty where they
                                 were not evaluated
                 valid_...       other figures of that evaluation; fine-tuning has them
    timing.csv   step            as above
                 seconds         of the run until then, evaluation and saving included, pauses between resumes not
                 tokens_per_second   since the last row, evaluation and saving left out
                 mfu             see throughput.py; empty where the model's FLOPs are not known

A step without targets, or one that was skipped, leaves loss and grad_norm empty.

Read next: `throughput.py`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from minillm.checkpoint.files import explained, reason, write_all, write_text
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError

METRICS = ("step", "tokens", "loss", "learning_rate", "grad_norm", "loss_z", "grad_norm_z", "valid_loss")
TIMING = ("step", "seconds", "tokens_per_second", "mfu")


class Table:
    """A CSV file that grows by whole rows; those that the disk refuses wait until it takes them."""

    def __init__(self, path: Path, content: str, safe: Callable[[], str]) -> None:
        """Give the file its content and open it.

        Args:
            safe: what says, for an error's text, what of the run is on the disk.
        Raises:
            InputError: it cannot be written.
        """
        self.path, self._safe = path, safe
        self.waiting: list[str] = []
        self._refusal: OSError | None = None  # why rows wait
        write_text(path, content, safe=safe())
        with explained(path, safe):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._size = len(content.encode())  # bytes of whole rows

    def append(self, *values: float | None) -> None:
        """Add a row, and hand it and those that wait to the system: a crash of this process does not lose them.

        Raises:
            InputError: it could not be written. It waits then, and the file ends with a whole row.
        """
        self.waiting.append(",".join(written(value) for value in values) + "\n")
        self.flush()

    def flush(self) -> None:
        """Hand the rows that wait to the system; raises as `append` does."""
        with explained(self.path, self._safe):
            while self.waiting:
                row = self.waiting[0].encode()
                try:
                    write_all(self._descriptor, row)
                except OSError as error:
                    self._refusal = error
                    with suppress(OSError):
                        os.ftruncate(self._descriptor, self._size)
                    raise
                self._size += len(row)
                self.waiting.pop(0)

    def sync(self) -> None:
        """Return when all rows are on the disk.

        Raises:
            InputError: they are not; some may wait still.
        """
        with explained(self.path, self._safe):
            if self.waiting and self._refusal is not None:
                raise OSError(self._refusal.errno, self._refusal.strerror)
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what waits, and close the file; raises as `append` does."""
        try:
            self.flush()
        finally:
            os.close(self._descriptor)


class Records:
    """The two open CSV files of a run, cut back to a step when it is resumed."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        step: int,
        figures: Sequence[str] = (),
        on_failure: Callable[[InputError], None] | None = None,
        safe: Callable[[], str] | None = None,
    ) -> None:
        """Open both files; rows after `step` belong to steps that will be taken again, and go.

        Args:
            folder: of the run; it must exist.
            step: optimiser steps done; 0: both files begin anew.
            figures: names of the evaluation's figures beside the loss.
            on_failure: called with the error of a row that could not be written; it waits then, and is written with
                the next one. None: the error is raised.
            safe: what says, for an error's text, what of the run is on the disk; None: the folder does.
        Raises:
            InputError: a file cannot be written.
        """
        self._figures, self._on_failure = tuple(figures), on_failure
        metrics = (*METRICS, *(f"valid_{name}" for name in figures))
        self._metrics, self._timing = (
            Table(path, cut(path, columns, step), safe or folder.safe)
            for path, columns in ((folder.metrics_path, metrics), (folder.timing_path, TIMING))
        )
        rows = read_columns(folder.timing_path)["seconds"]
        self.seconds_before = rows[-1] if rows and rows[-1] is not None else 0.0

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for table in (self._metrics, self._timing):
            try:
                table.close()
            except InputError:  # where another error is being raised, that one tells more
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
        z: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """Append a row to metrics.csv.

        Args:
            z: of the loss and of the gradient norm.
            valid: figures of the evaluation after this step by name, "loss" among them; empty where there was none.
        """
        figures = (valid.get(name) for name in ("loss", *self._figures))
        self._append(self._metrics, step, tokens, loss, learning_rate, grad_norm, *z, *figures)

    def timing(self, *, step: int, seconds: float, tokens_per_second: float, mfu: float | None) -> None:
        """Append a row to timing.csv; `seconds` counts from the start of this session, earlier ones are added."""
        seconds = round(self.seconds_before + seconds, 3)
        rate, share = round(tokens_per_second, 1), None if mfu is None else round(mfu, 5)
        self._append(self._timing, step, seconds, rate, share)

    def _append(self, table: Table, *values: float | None) -> None:
        told = bool(table.waiting)
        try:
            table.append(*values)
        except InputError as error:
            if self._on_failure is None:
                raise
            if not told:  # once, not with every row
                self._on_failure(error)

    def flush(self) -> None:
        """Try once more to write the rows that wait; `sync` says whether any do still."""
        for table in (self._metrics, self._timing):
            with suppress(InputError):
                table.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk: a checkpoint must not be newer than the rows before it.

        Raises:
            InputError: they are not.
        """
        for table in (self._metrics, self._timing):
            table.sync()


def written(value: float | None) -> str:
    """Return a number as the CSVs hold it: 9 significant digits, which tell any two float32 numbers apart."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def cut(path: Path, columns: tuple[str, ...], step: int) -> str:
    """Return the header and the whole rows up to `step` of a CSV file that may not exist or end in half a row.

    Rows of a file that had other columns keep what belongs to these.
    """
    header = ",".join(columns) + "\n"
    if step == 0 or not path.exists():
        return header

    def is_done(line: str) -> bool:
        number = line.partition(",")[0]
        return number.isdecimal() and len(number) <= 18 and int(number) <= step  # int() refuses thousands of digits

    with explained(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    before = lines[0].rstrip("\n").split(",") if lines else []
    whole = [line for line in lines[1:] if line.endswith("\n") and line.count(",") == len(before) - 1]
    kept = [line for line in whole if is_done(line)]
    if before != list(columns):
        rows = [dict(zip(before, line.rstrip("\n").split(","), strict=True)) for line in kept]
        kept = [",".join(row.get(name, "") for name in columns) + "\n" for row in rows]
    return header + "".join(kept)


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
