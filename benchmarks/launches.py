"""The section of launch tables: which entries another setting would make faster on this GPU, ready to be written in.

Without --tune it looks at the neighbours of the most used entries, as far as its time goes; with --tune it walks over
all entries, in a budget of its own. It changes no file.

Read next: `plots.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from benchmarks.child import Child
from benchmarks.context import Context, Part

WIDE_BUDGET = 540.0  # seconds, with --tune


def launches(context: Context) -> Iterator[Part]:
    """Walk over launch settings until the budget is over; a knob that ends its process is passed over."""
    if context.kind != "cuda":
        yield {"reason": "launch tables are those of a GPU's kernels, and this device has none"}
        return
    until = time.monotonic() + context.budget
    left = titles(wide=context.tune)  # imports Triton, which takes seconds
    found: list[Part] = []
    not_run: list[Part] = []
    while left and time.monotonic() < until:
        current = None
        words = ["launches", "--cases", json.dumps(left), *["--wide"] * context.tune]
        with Child("benchmarks.worker", words) as worker:
            for line in worker.lines(until):
                if "start" in line:
                    current = line["start"]
                    continue
                found.append(line["found"])
                left.remove(found[-1]["title"])
                context.say(f"{found[-1]['title']}: {found[-1].get('line') or found[-1].get('reason') or 'stays'}")
                current = None
                yield {"found": found, "not_run": not_run + _no_time(left)}
        if time.monotonic() >= until:
            break
        blamed = left if current is None else [current]  # it ended without having begun: again would not help
        not_run += [{"title": title, "reason": worker.reason} for title in blamed]
        left = [title for title in left if title not in blamed]
    yield {"found": found, "not_run": not_run + _no_time(left)}


def titles(*, wide: bool) -> list[str]:
    """Return the names of the knobs of this GPU, in the order of exploring."""
    import torch

    from benchmarks.knobs import knobs  # imports Triton

    return [knob.title for knob in knobs(torch.device("cuda"), wide=wide)]


def _no_time(left: list[str]) -> list[Part]:
    return [{"title": title, "reason": "no time left in the budget"} for title in left]
