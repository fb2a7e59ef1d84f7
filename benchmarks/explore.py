"""A walk over launch settings: from where a knob stands to a neighbour that is faster, until none is.

A setting counts as faster when the quartiles of both, taken in turns, do not touch. Before it is suggested its results
are held against float64: another tile is another program to the compiler, and may be a wrong one. What is found stays
set for the knobs that follow.

Read next: `launches.py`, the section.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.check import Oracle
from benchmarks.knobs import Case, Knob, knobs
from benchmarks.measure import calls_of
from benchmarks.timing import Times, copies_for, first_line, forget, interleaved

Results = dict[Any, Times | Exception]
Measure = Callable[[Knob, Sequence[Any]], Results]
Verify = Callable[[Knob], str]
STEPS = {False: 1, True: 6}  # of a walk, without --tune and with it
CHECK = {"B": 1, "T": 512, "S": 512, "R": 512, "N": 512}  # sizes of the check, where they are larger
ROUNDS, SECONDS = 21, 1.5


def explore(
    write: Callable[[dict[str, Any]], None], device: torch.device, titles: Sequence[str], *, wide: bool
) -> None:
    """Walk with the named knobs, one after another; what goes wrong with one is its result."""
    for knob in (k for k in knobs(device, wide=wide) if k.title in titles):
        write({"start": knob.title})
        try:
            found = walk(knob, partial(timed, device=device), partial(verdict, device=device), STEPS[wide])
        except Exception as error:  # of a compiler, mostly
            found = {"reason": first_line(error)}
            forget(error)
        write({"found": {"title": knob.title, "file": knob.file, "name": knob.name, **found}})


def walk(knob: Knob, measure: Measure, verify: Verify, steps: int) -> dict[str, Any]:
    """Turn a knob until no neighbour is faster, and leave it there if its results are right.

    Args:
        measure: times settings of the knob in turns.
        verify: "" where the results at the knob's present setting are right, else what is wrong.
        steps: at most.
    Returns:
        was, now: the setting before and after, as text; faster: how many times; tried: settings that ran, and failed:
        that did not; line: of the table, where the setting changed; reason: why it did not though it was faster.
    """
    start = best = knob.get()
    known: Results = {}
    for _ in range(steps):
        new = [value for value in knob.neighbours(best) if value not in known]
        results = measure(knob, [best, *new])
        known |= results
        here = results[best]
        if isinstance(here, Exception):
            raise here
        faster = {v: t for v, t in results.items() if isinstance(t, Times) and t.quartiles[1] < here.quartiles[0]}
        if not faster:
            break
        best = min(faster, key=lambda value: faster[value].median)
    tried = sum(isinstance(t, Times) for t in known.values())
    found = {"was": str(start), "now": str(best), "faster": 1.0, "tried": tried, "failed": len(known) - tried}
    if best == start:
        return found
    again = measure(knob, [start, best])  # beside each other, as steps of a walk are not
    before, after = again[start], again[best]
    if isinstance(before, Exception) or isinstance(after, Exception):
        return found | {"now": str(start), "reason": f"{best} failed when it was timed again"}
    found["faster"] = before.median / after.median
    if after.quartiles[1] >= before.quartiles[0]:
        return found | {"now": str(start), "reason": f"{best} was not faster when it was timed again"}
    knob.put(best)
    if wrong := verify(knob):
        knob.put(start)
        return found | {"now": str(start), "reason": f"{best} is faster and wrong: {wrong}"}
    return found | {"line": knob.written()}


def timed(knob: Knob, values: Sequence[Any], device: torch.device) -> Results:
    """Return the times of settings of a knob on a GPU, by the case that judges it."""
    case = knob.case
    num_bytes, _ = case.benchmark.cost(case.dims, case.dtype.itemsize).of(case.direction)
    copies = copies_for(num_bytes, device)
    call = calls_of(case.benchmark, case.dims, case.dtype, device, case.direction, copies)
    run = call(case.benchmark.provider("fused", case.dims, device))

    def at(value: Any) -> Callable[[int], Any]:
        def turned(i: int) -> Any:
            with knob.at(value):
                return run(i)

        return turned

    times = interleaved(
        {str(value): at(value) for value in values},
        copies=copies,
        device=device,
        rounds=ROUNDS,
        seconds=SECONDS,
        graph=case.benchmark.graph,
    )
    return {value: times[str(value)] for value in values}


def verdict(knob: Knob, device: torch.device) -> str:
    """Return what is wrong with the results at the knob's present setting; nothing where they are right."""
    case: Case = knob.case
    small = {name: min(size, CHECK.get(name, size)) for name, size in case.dims.items()}
    if case.dims.get("T") == 1:
        small["S"] = case.dims["S"]
    oracle = Oracle(case.benchmark, small, case.dtype, device)
    error = oracle.error(case.benchmark.provider("fused", small, device), case.direction)
    return "" if error.passes else error.told
