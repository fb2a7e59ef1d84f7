"""Runs that take hours in all, kept one by one: what was stopped goes on where it was, and no run is made twice.

NAME.json holds a header and the runs; NAME.md is made from it alone. Means and deviations over seeds are told here.

Read next: `masking.py` and `finetuning.py`, which make such runs.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import write_whole


def read(path: Path, name: str = "runs") -> Any:
    """Return the runs in a file, or what else was written with them; an empty list where there is none."""
    return json.loads(path.read_text(encoding="utf-8")).get(name, []) if path.exists() else []


def write(path: Path, about: Mapping[str, Any], runs: Sequence[Any], page: str) -> None:
    """Write the runs, dataclasses, as JSON, and the page beside them."""
    result = {**about, "runs": [dataclasses.asdict(run) for run in runs]}
    write_whole(path, json.dumps(result, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), page)


def made_on(head: Mapping[str, Any], commits: Iterable[str] = ()) -> str:
    """Return in words where, with what and when a page's figures were taken: at commits, or at the header's."""
    commit = ", ".join(sorted(set(commits))) or head["commit"]
    return (
        f"On {head['device']} with {head['threads']} threads, PyTorch {head['versions']['torch']}, commit {commit}, "
        f"{head['date'][:10]}."
    )


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean ± sample standard deviation; of one value the value alone.

    >>> spread([1.0, 2.0, 3.0], 2), spread([1234.5], 0)
    ('2.00 ± 1.00', '1,234')
    """
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two means differ by more than twice the standard error of their difference.

    >>> apart([1.0, 1.1, 0.9], [1.3, 1.4, 1.2]), apart([1.0, 1.1, 0.9], [1.05, 1.15, 0.95])
    (True, False)
    """
    if min(len(one), len(other)) < 2:
        return False
    variances = [statistics.variance(values) / len(values) for values in (one, other)]
    return abs(statistics.mean(one) - statistics.mean(other)) > 2 * sum(variances) ** 0.5
