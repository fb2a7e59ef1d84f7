"""--compare A B: what changed between two results. A difference smaller than both spreads is noise, and said to be.

Read next: `ops/__init__.py`, to add an op; `training/recipes.py`, to add a recipe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.parts import ceilings_of, rows_of, table

TIMED = {  # sections with rows that have a time -> what tells a row from the others, as heads of the table
    "ops": (*figures.KEY, "provider"),
    "scaling": (*figures.KEY, "provider"),
    "recipes": ("recipe", "contender"),
}
WITHIN = "within the spread"


class Unreadable(ValueError):
    """A file that is no result; one line says why."""


def main(first: Path, second: Path) -> int:
    """Print the comparison and return the exit status."""
    try:
        before, after = read(first), read(second)
    except Unreadable as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    try:
        lines = list(compared(before, after))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:  # JSON, but cut about by hand
        print(
            f"benchmarks: {first} or {second} is damaged ({type(error).__name__}: {error}); measure again",
            file=sys.stderr,
        )
        return 2
    print("\n".join(lines))
    return 0


def read(path: Path) -> dict[str, Any]:
    """Return a result.

    Raises:
        Unreadable: there is no such file, or it is not one of ours.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for section in TIMED:
            rows_of(result, section)
        result["header"]["device"]
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}; name the .json of a result") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unreadable(f"{path} is not a result; name the .json that python -m benchmarks wrote") from None
    return result


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the comparison: ceilings first, as a machine that changed explains the rest."""
    for name, result in (("A", before), ("B", after)):
        head = result["header"]
        quick = ", quick" if result.get("quick") else ""
        yield f"{name}: {head['device']}, {head['date']}, commit {head['commit']}{quick}"
    if before["header"]["device"] != after["header"]["device"]:
        yield "The devices differ: times say nothing about the commits."
    yield ""
    for name, ceiling in ceilings_of(after).items():
        old = figures.ceiling_rate(ceilings_of(before), name)
        if old and ceiling["rate"]:
            yield f"ceiling {name}: {100 * (ceiling['rate'] / old - 1):+.1f} %"
    for section, key in TIMED.items():
        old_rows, new_rows = (
            {tuple(row[name] for name in key): row for row in rows_of(result, section)} for result in (before, after)
        )
        if not old_rows and not new_rows:
            continue
        yield from ("", f"{section}:", "")
        cells = [[*k, *_change(old_rows[k], row)] for k, row in new_rows.items() if k in old_rows]
        if cells:
            yield from table((*key, "time of B / A", "verdict"), cells)
            verdicts = [cell[-1] for cell in cells if cell[-2]]
            yield from ("", f"{verdicts.count(WITHIN)} of {len(verdicts)} times are within the spread.")
        else:
            yield "A and B have no row in common."
        for name, keys in (("A", old_rows.keys() - new_rows.keys()), ("B", new_rows.keys() - old_rows.keys())):
            if keys:
                yield f"only in {name}: {len(keys)} rows"


def _change(old: figures.Row, new: figures.Row) -> tuple[str, str]:
    if old["status"] != new["status"]:
        return "", f"{old['status']} -> {new['status']}"
    if "seconds" not in old or "seconds" not in new:
        return "", new["status"]
    one, other = (row.get("tokens", 1) for row in (old, new))  # steps of another size are compared by the token
    ratio = (new["seconds"] / other) / (old["seconds"] / one)
    if new["low"] / other <= old["high"] / one and old["low"] / one <= new["high"] / other:
        return f"{ratio:.3f}", WITHIN
    return f"{ratio:.3f}", "slower" if ratio > 1 else "faster"
