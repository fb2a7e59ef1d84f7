"""What follows from the rows: rates, shares of a ceiling, speed-ups. Pure functions of numbers that were measured.

The ceiling of a case is the roofline's: at the measured rates the task takes no less than its bytes over the copy
bandwidth and, for products of matrices, its operations over the rate of products in its dtype; the larger of both is
the least time, and says what bounds the op. Operations outside of the matrix unit have no measured ceiling: those ops
move so many bytes an operation that memory is theirs.

A training step's ceiling is that of products alone, which gives the usual figure:

    MFU = operations of a step / its seconds / rate of products,    once at the data sheet's rate, once at the measured

Read next: `report.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Ceilings = Mapping[str, Mapping[str, Any]]
BASELINE = "torch"  # speed-ups are over this provider
COPY = "copy"  # of as many bytes: computes no op, but is timed beside the providers of one that memory bounds
KEY = ("op", "shape", "dtype", "direction")


def ceiling_rate(ceilings: Ceilings, name: str) -> float | None:
    """Return the rate of a ceiling; None where it was not measured."""
    return ceilings.get(name, {}).get("rate")


def key_of(row: Row) -> tuple[str, ...]:
    """Return what the rows of one comparison have in common."""
    return tuple(row[name] for name in KEY)


def bound(row: Row, ceilings: Ceilings) -> tuple[str, float] | None:
    """Return the name of the ceiling that bounds a case and the least seconds under it; None where it is unknown.

    >>> row = {"bytes": 100, "flops": 900, "unit": "matrix", "dtype": "bf16"}
    >>> bound(row, {"copy": {"rate": 50.0}, "matrix bf16": {"rate": 100.0}})
    ('matrix bf16', 9.0)
    """
    names = {"copy": row["bytes"]}
    if row["unit"] == "matrix":
        names[f"matrix {row['dtype']}"] = row["flops"]
    least = {name: work / rate for name, work in names.items() if (rate := ceiling_rate(ceilings, name))}
    if len(least) < len(names):
        return None
    name = max(least, key=lambda n: least[n])
    return name, least[name]


def share(row: Row, ceilings: Ceilings) -> float | None:
    """Return the share of its ceiling that a measured row reaches; above 1 where the caches hold its data."""
    limit = bound(row, ceilings)
    return limit[1] / row["seconds"] if limit and "seconds" in row else None


def beside_copy(row: Row, rows: Sequence[Row]) -> float | None:
    """Return the time that a copy of as many bytes takes as a share of a row's; None where it was not timed alike."""
    copy = next((r for r in rows if key_of(r) == key_of(row) and r["provider"] == COPY and "seconds" in r), None)
    if copy is None or "seconds" not in row or copy["method"] != row["method"]:
        return None
    return seconds_beside(row, copy) / row["seconds"]


def seconds_beside(row: Row, other: Row) -> float:
    """Return the seconds of the row `other` beside `row`: of its first visit where `row` was visited once.

    The machine has drifted in the later ones.
    """
    return other["seconds"] if "visits" in row else other.get("visits", [other["seconds"]])[0]


def add_visit(row: dict[str, Any], found: Row) -> None:
    """Put the times of one more visit into a row: the median of the visits, between their lowest and highest quartile.

    >>> row = {"seconds": 2.0, "low": 1.9, "high": 2.1}
    >>> add_visit(row, {"seconds": 3.0, "low": 2.8, "high": 3.1})
    >>> row["seconds"], row["low"], row["high"], row["visits"]
    (2.5, 1.9, 3.1, [2.0, 3.0])
    """
    row["visits"] = [*row.get("visits", [row["seconds"]]), found["seconds"]]
    row["seconds"] = statistics.median(row["visits"])
    row["low"], row["high"] = min(row["low"], found["low"]), max(row["high"], found["high"])


def spread(row: Row) -> float:
    """Return the distance of the quartiles, the outermost of all visits, as a share of the median."""
    return (row["high"] - row["low"]) / row["seconds"]


def is_right(row: Row) -> bool:
    """Return whether a row was timed and its result is known to be right."""
    return row["status"] == "measured" and row.get("error_share") is not None and row.get("finite", True)


def speedup(row: Row, rows: Sequence[Row]) -> float | None:
    """Return how many times as fast as the baseline a row is; None unless both are right, and timed in the same way."""
    base = baseline(row, rows)
    if base is None or not is_right(row) or base.get("method") != row.get("method"):  # a graph beside launches
        return None
    return seconds_beside(row, base) / row["seconds"]


def baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row of the baseline beside `row`, None unless it is right."""
    return next((r for r in rows if key_of(r) == key_of(row) and r["provider"] == BASELINE and is_right(r)), None)


def tokens_per_second(row: Row) -> float:
    """Return the rate of a contender that was timed."""
    return row["tokens"] / row["seconds"]


def fastest_peer(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the fastest right peer of the same recipe, None where there is none."""
    peers = [r for r in rows if r["recipe"] == row["recipe"] and r["peer"] and r["status"] == "measured"]
    return max(peers, key=tokens_per_second, default=None)


def beside_peer(row: Row, rows: Sequence[Row]) -> float | None:
    """Return how many times as fast as the fastest peer a contender is; None unless both are right and of one model."""
    peer = fastest_peer(row, rows)
    if peer is None or row["status"] != "measured" or row["as_filed"]:
        return None
    return tokens_per_second(row) / tokens_per_second(peer)


def mfu(row: Row, rate: float | None) -> float | None:
    """Return the share of a rate of products that a contender reaches, None where the rate is unknown.

    >>> mfu({"flops": 30.0, "seconds": 2.0}, 50.0)
    0.3
    """
    return row["flops"] / row["seconds"] / rate if rate else None


def predicted(row: Row, ceilings: Ceilings) -> float | None:
    """Return the seconds of a step by equation (1) of `training/work.py`, None where its work was not counted.

    >>> ceilings = {"copy": {"rate": 50.0}, "matrix bf16": {"rate": 100.0}}
    >>> predicted({"work": {"bytes": 100, "flops": 300}, "dtype": "bf16"}, ceilings)
    5.0
    """
    copy, products, work = (
        ceiling_rate(ceilings, "copy"),
        ceiling_rate(ceilings, f"matrix {row['dtype']}"),
        row.get("work"),
    )
    return work["bytes"] / copy + work["flops"] / products if copy and products and work else None
