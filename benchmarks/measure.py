"""One case, an op at one set of sizes: every provider checked, then timed, as rows for the report.

A row holds what was measured and counted and nothing that is derived from it: rates, shares of a ceiling and speed-ups
are `figures.py`'s.

Read next: `check.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceilings import SHORT
from benchmarks.check import Error, Oracle, upstream
from benchmarks.figures import COPY
from benchmarks.ops.registration import (
    Dims,
    Direction,
    OpBenchmark,
    Run,
    Shape,
    Source,
    Unavailable,
    in_tuple,
    leaves_of,
)
from benchmarks.timing import Call, Times, copies_for, first_line, forget, interleaved

Row = dict[str, Any]
Heard = Callable[[str], object]
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}  # what is trained in there


@dataclass(frozen=True)
class Effort:
    """rounds: samples a provider; seconds: after which a case starts no further round."""

    rounds: int
    seconds: float


EFFORTS = {  # by kind of device, then whether it has to be quick
    "cuda": {False: Effort(31, 4.0), True: Effort(11, 1.0)},
    "cpu": {False: Effort(15, 4.0), True: Effort(5, 0.5)},
}
SCALING_EFFORT = Effort(9, 0.8)


def measure_case(
    benchmark: OpBenchmark,
    shape: Shape,
    device: torch.device,
    effort: Effort,
    skip: Collection[str] = (),
    *,
    gone: Mapping[str, str] | None = None,
    heard: Heard = lambda provider: None,
) -> list[Row]:
    """Return one row for each provider and direction of a case, but for providers named in `skip`.

    Args:
        gone: providers that are not tried, because they ended a process before, and what became of it.
        heard: called with the name of each provider whenever its code is about to run.
    Returns:
        rows whose `status` is "measured"; "wrong": measured, and its result is not within what is allowed; or "not
        run", with a `reason`.
    """
    dtype = DTYPES[device.type]
    torch.compiler.reset()  # compiled code is remembered by function: many sizes would end in eager
    blank = {
        "op": benchmark.name,
        "shape": shape.name,
        "dims": dict(shape.dims),
        "check_dims": {**shape.dims, **shape.check},
        "dtype": SHORT[dtype],
    }
    named = [name for name in benchmark.timed() if name not in skip]
    tried = [name for name in named if name != COPY]
    left_out = {name: Unavailable(reason) for name, reason in (gone or {}).items()}
    runs, checks = _checked_providers(benchmark, shape, dtype, device, tried, left_out, heard)
    cost = benchmark.cost(shape.dims, dtype.itemsize)
    rows: list[Row] = []
    for direction in benchmark.directions:
        num_bytes, flops = cost.of(direction)
        copies = copies_for(num_bytes, device)
        call_of = calls_of(benchmark, shape.dims, dtype, device, direction, copies)
        calls, extras = _tried(benchmark, call_of, runs, checks[direction], device, heard)
        if COPY in named:
            calls[COPY] = copying(num_bytes, copies, device)
        times = interleaved(
            calls,
            copies=copies,
            device=device,
            rounds=effort.rounds,
            seconds=effort.seconds,
            graph=benchmark.graph,
            heard=heard,
        )
        counted = {"direction": direction, "bytes": num_bytes, "flops": flops, "copies": copies, "unit": cost.unit}
        for name in named:
            verdict = checks[direction].get(name, runs.get(name))
            result = times.get(name, extras.get(name, verdict))
            extra = extras.get(name)
            known = extra if isinstance(extra, dict) else {}
            rows.append({**blank, **counted, "provider": name, **known, **_outcome(result, verdict)})
        del calls, call_of, times
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def time_again(
    benchmark: OpBenchmark,
    shape: Shape,
    device: torch.device,
    effort: Effort,
    providers: Collection[str],
    *,
    heard: Heard = lambda provider: None,
) -> list[Row]:
    """Return the times of providers that `measure_case` has checked and timed before, in another process."""
    dtype = DTYPES[device.type]
    rows: list[Row] = []
    for direction in benchmark.directions:
        num_bytes, _ = benchmark.cost(shape.dims, dtype.itemsize).of(direction)
        copies = copies_for(num_bytes, device)
        call_of = calls_of(benchmark, shape.dims, dtype, device, direction, copies)
        calls = {
            name: copying(num_bytes, copies, device)
            if name == COPY
            else call_of(benchmark.provider(name, shape.dims, device))
            for name in providers
        }
        rounds, seconds, graph = effort.rounds, effort.seconds, benchmark.graph
        times = interleaved(
            calls, copies=copies, device=device, rounds=rounds, seconds=seconds, graph=graph, heard=heard
        )
        case = {"op": benchmark.name, "shape": shape.name, "dtype": SHORT[dtype], "direction": direction}
        rows += [
            {**case, "provider": name, **_seconds(found)} for name, found in times.items() if isinstance(found, Times)
        ]
        del calls, call_of
        gc.collect()
    return rows


def _seconds(times: Times) -> Row:
    low, high = times.quartiles
    return {"seconds": times.median, "low": low, "high": high}


def _outcome(result: Any, verdict: Any) -> Row:
    """Return the part of a row that tells what came of a provider."""
    row: Row = {}
    if isinstance(verdict, Error):
        row |= {"error": verdict.error, "error_share": verdict.share, "error_where": verdict.where}
    if not isinstance(result, Times):
        reason = str(result) if isinstance(result, Unavailable) else first_line(result)
        return row | {"status": "not run", "reason": reason}
    row |= {"status": "measured", **_seconds(result), "rounds": len(result.samples), "method": result.method}
    if result.note:
        row["note"] = result.note
    if isinstance(verdict, Error) and not verdict.passes:
        row["status"] = "wrong"
        row["reason"] = verdict.told
    return row


def _checked_providers(
    benchmark: OpBenchmark,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    tried: Collection[str],
    left_out: Mapping[str, Exception],
    heard: Heard,
) -> tuple[dict[str, Run | Exception], dict[Direction, dict[str, Error | Exception]]]:
    """Return each provider's function or why there is none, and its error in each direction or what it raised."""
    oracle = Oracle(benchmark, {**shape.dims, **shape.check}, dtype, device)
    runs: dict[str, Run | Exception] = {}
    checks: dict[Direction, dict[str, Error | Exception]] = {d: {} for d in benchmark.directions}
    for name in tried:
        if name in left_out:
            runs[name] = left_out[name]
            continue
        heard(name)
        try:
            checked = benchmark.provider(name, oracle.dims, device)
            runs[name] = checked if shape.check == {} else benchmark.provider(name, shape.dims, device)
        except Exception as error:  # whatever keeps a stranger's code from running is its result
            runs[name] = error
            forget(error)
            continue
        for direction in benchmark.directions:
            if name in benchmark.unchecked:
                continue
            try:
                checks[direction][name] = oracle.error(checked, direction)
            except Exception as error:
                checks[direction][name] = error
                forget(error)
    return runs, checks


def calls_of(
    benchmark: OpBenchmark, dims: Dims, dtype: torch.dtype, device: torch.device, direction: Direction, copies: int
) -> Callable[[Run], Call]:
    """Return what makes of a provider's function the call that is timed, on one of several copies of random inputs."""
    source = Source(device)
    inputs = [benchmark.inputs(dims, dtype, source) for _ in range(copies)]
    for tensors in inputs:
        for leaf in leaves_of(benchmark, tensors).values():
            leaf.requires_grad_(direction != "forward")
    gradients: dict[tuple[torch.dtype, ...], list[list[Tensor]]] = {}

    def call_of(run: Run) -> Call:
        def forward(i: int) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return in_tuple(run(inputs[i]))

        def both(i: int) -> tuple[Tensor, ...]:
            outputs = in_tuple(run(inputs[i]))
            key = tuple(y.dtype for y in outputs)
            if key not in gradients:  # in the first call, which is never captured
                gradients[key] = [upstream(outputs, device) for _ in range(copies)]
            leaves = list(leaves_of(benchmark, inputs[i]).values())
            return torch.autograd.grad(outputs, leaves, gradients[key][i])

        return forward if direction == "forward" else both

    return call_of


def copying(num_bytes: int, copies: int, device: torch.device) -> Call:
    """Return the call that reads half of so many bytes, one of several random buffers, and writes the other half."""
    source = Source(device)
    buffers = [source.normal(max(1, num_bytes // 8), dtype=torch.float32) for _ in range(copies)]
    return lambda i: torch.neg(buffers[i])  # no copy_: a GPU's copy in a graph takes its slower copy engines


def _tried(
    benchmark: OpBenchmark,
    call_of: Callable[[Run], Call],
    runs: dict[str, Run | Exception],
    checks: dict[str, Error | Exception],
    device: torch.device,
    heard: Heard,
) -> tuple[dict[str, Call], dict[str, Row | Exception]]:
    """Return what is timed for each provider that ran in the check, and its memory and whether its bits repeat."""
    calls: dict[str, Call] = {}
    extras: dict[str, Row | Exception] = {}
    for name, run in runs.items():
        if isinstance(run, Exception) or isinstance(checks.get(name), Exception):
            continue
        call = call_of(run)
        heard(name)
        try:
            extras[name] = _trial(call, device, benchmark, name)
            calls[name] = call
        except Exception as error:
            extras[name] = error
            forget(error)
    return calls, extras


def _trial(call: Call, device: torch.device, benchmark: OpBenchmark, name: str) -> Row:
    """Run one call twice: the memory that it takes at its peak, and whether the results have the same bits."""
    first = call(0)
    row: Row = {}
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        second = call(0)
        torch.cuda.synchronize()
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    else:
        second = call(0)
    if name not in benchmark.unchecked:
        row["repeats"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        finite: Callable[[Tensor], bool] = lambda t: bool(torch.isfinite(t).all())  # noqa: E731
        row["finite"] = all(finite(t) for t in second)
    return row
