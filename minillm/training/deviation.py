r"""How far a step's loss and gradient norm lie from those of the steps before it: the z-scores in metrics.csv.

    z = (x - mean) / deviation      over the last 128 steps before this one, the sample deviation

A z above some 5 is a spike: a broken batch, a learning rate that is too high, or a run about to leave. Every step
enters the window, also one that no row is written of, so that z does not depend on how often is logged.

Read next: `state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

WINDOW = 128  # steps that a value is held against
LEAST = 16  # fewer tell nothing


def z_score(value: float, before: Sequence[float]) -> float | None:
    """Return how many deviations `value` lies above the mean of the values before it.

    Returns:
        None where there are fewer than 16 of these, all are equal, or `value` is not finite.

    >>> round(z_score(5.0, [1.0, 2.0] * 8), 3)
    6.778
    """
    if len(before) < LEAST or not math.isfinite(value):
        return None
    mean = math.fsum(before) / len(before)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in before) / (len(before) - 1))
    return (value - mean) / deviation if deviation > 0 else None


def pushed(before: list[float], value: float) -> None:
    """Add a value to a window, in place; one that is not finite stays out of it, and the oldest goes."""
    if math.isfinite(value):
        before.append(value)
        del before[:-WINDOW]
