"""Label names <-> numbers. Names are sorted before they are numbered: their order in a file means nothing.

Read next: `texts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError
from minillm.finetune.table import Table

DIGITS = 100  # of a number; Python refuses to read some thousands of them


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once, sorted: as numbers where all are whole numbers, else by code points.

    >>> sorted_names(["10", "9", "9"]), sorted_names(["b", "10", "9"])
    (('9', '10'), ('10', '9', 'b'))
    """
    found = set(names)
    whole = all(len(name) <= DIGITS and name.isascii() and name.removeprefix("-").isdigit() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))


def check_several(names: Sequence[str], table: Table, column: str) -> None:
    """Raise InputError unless there are two labels at least, and fewer than rows: else there is nothing to learn."""
    if len(names) < 2:
        raise InputError(
            f"{table.path} has one class only: {column} is {names[0]!r} in all {len(table):,} rows; "
            f"give rows of two classes at least"
            if names
            else f"{table.path} names no label in column {column}; give rows with labels"
        )
    if len(names) > 20 and 2 * len(names) > len(table):
        raise InputError(
            f"{table.path} has {len(names):,} different labels in {len(table):,} rows: is {column} the label's column? "
            f"name another with data.label_column, or set task.name to regression"
        )


def numbers_of(names: Sequence[str], labels: Sequence[str], table: Table, column: str) -> NDArray[np.int64]:
    """Return the number of each name, (N,).

    Raises:
        InputError: a name that was not among those learnt; its place is named, and how many rows have such.
    """
    number = {label: place for place, label in enumerate(labels)}
    unknown = [row for row, name in enumerate(names) if name not in number]
    if unknown:
        raise unseen(table, unknown, names[unknown[0]], labels, column)
    return np.array([number[name] for name in names], dtype=np.int64)


def unseen(table: Table, rows: Sequence[int], name: str, labels: Sequence[str], column: str) -> InputError:
    """Return the error for rows with labels that the training table does not have."""
    shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    more = f" ({len(rows):,} rows have such labels)" if len(rows) > 1 else ""
    return InputError(
        f"{table.place(rows[0])}: {column} is {name!r}, which is no label of the training table{more}; "
        f"known are {shown}: mend the row, or add rows with that label to the training table"
    )
