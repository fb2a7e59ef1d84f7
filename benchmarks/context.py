"""What a section of a run is, and what it is told.

Read next: `sections.py`, which has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Part = dict[str, Any]  # of a result, as JSON


@dataclass(frozen=True)
class Context:
    """kind: "cuda" or "cpu". ops: names, or None for all. skip: providers. budget: seconds of this section.

    say: called with what is worth a line on the screen. tune: whether launch tables are explored widely.
    chosen: names of the sections of this run.
    """

    kind: str
    quick: bool
    ops: Sequence[str] | None
    skip: Sequence[str]
    budget: float
    say: Callable[[str], None]
    tune: bool = False
    chosen: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """run: yields its part of the result as it grows. budgets: seconds by kind of device, then quick or not."""

    name: str
    run: Callable[[Context], Iterator[Part]]
    budgets: dict[str, tuple[float, float]]

    def budget(self, kind: str, quick: bool) -> float | None:
        """Return the seconds that the section may take; None where it has nothing to say of this kind of device."""
        return self.budgets[kind][quick] if kind in self.budgets else None
