"""CSV, TSV, JSONL and Parquet -> columns of values, with the line of each row; a broken file is named with its line.

Read next: `encoding.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.finetune.config import TableConfig


@dataclass(frozen=True, kw_only=True)
class Table:
    """N rows of a file.

    path: where they came from, for messages; `-` is standard input.
    columns: name -> N values. Of .csv and .tsv texts; of .jsonl and .parquet whatever JSON can hold.
    lines: (N,) the line, or of .parquet the row, that each row began at, from 1.
    """

    path: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Return where a row stands, for messages: "train.tsv, line 17"."""
        return f"{self.path}, line {self.lines[row]}"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; None: there is none. A question is a text, its context the pair."""

    text: str
    pair: str | None = None
    label: str | None = None


def read_table(path: Path, config: TableConfig, known: Mapping[str, Sequence[str]]) -> Table:
    """Return the table in a file, by its suffix.

    Args:
        known: names of columns that a task looks for, by role; by them a header is told from a first row.
    Raises:
        InputError: no such file, an unknown suffix, broken quoting, encoding or JSON, rows of different widths, a line
            above the limit, or no rows; the text names the file and the line.
    """
    raise NotImplementedError


def find_columns(table: Table, config: TableConfig, known: Mapping[str, Sequence[str]], *, labelled: bool) -> Columns:
    """Return the columns that hold text, pair and label.

    Args:
        config: what the user named; that comes first.
        known: role ("text", "pair", "label") -> names that it is found by, the likeliest first.
        labelled: whether a label column must be there.
    Raises:
        InputError: none is found, or the named one is not there; the text lists those that are.
    """
    raise NotImplementedError
