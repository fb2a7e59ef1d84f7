"""A process that measures and writes one JSON line for all that it finds: python -m benchmarks.worker

Before each case it writes which one comes, and before each provider whose turn it is: `sections.py` knows whom to blame
where it dies.

Read next: `sections.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings
from benchmarks.measure import EFFORTS, SCALING_EFFORT, Effort, measure_case, time_again
from benchmarks.ops import BENCHMARKS, FIRST, scaling
from benchmarks.ops.registration import Shape
from benchmarks.timing import first_line
from minillm.training.host_memory import keep_freed_memory

Line = dict[str, Any]


def cases(kind: str, *, quick: bool, ops: list[str] | None) -> list[tuple[str, str]]:
    """Return (op, shape) in the order of measurement: every op's first shape, then every op's second, and so on."""
    chosen = [BENCHMARKS[name] for name in dict.fromkeys((*FIRST, *BENCHMARKS)) if ops is None or name in ops]
    ranks = 1 if quick else max(len(b.shapes[kind]) for b in BENCHMARKS.values())
    return [(b.name, b.shapes[kind][i].name) for i in range(ranks) for b in chosen if i < len(b.shapes[kind])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("what", choices=("ceilings", "ops", "scaling", "launches"))
    parser.add_argument("--to", type=Path, required=True, help="file to which lines are appended")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true", help="time only: what was checked before, in another process")
    parser.add_argument("--wide", action="store_true", help="launches: every entry, and more than one step")
    parser.add_argument(
        "--cases",
        type=json.loads,
        default=[],
        help="[[op, shape, {provider: why it is left out}], ...]; launches: titles",
    )
    parser.add_argument("--skip", type=json.loads, default=[], help="[provider, ...]")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    effort = EFFORTS[device.type][given.quick]
    if device.type == "cpu":
        keep_freed_memory()  # as in training: else the system takes memory back from one provider in another's turn
    with given.to.open("a", encoding="utf-8") as file:

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        match given.what:
            case "ceilings":
                for found in ceilings.measure(device, rounds=effort.rounds, seconds=effort.seconds):
                    write({"ceilings": found})
            case "ops":
                run_cases(given.cases, write, device, _shape_of_op, effort, given.skip, again=given.again)
            case "scaling":
                others = {name for b in BENCHMARKS.values() for name in b.timed()} - set(scaling.LINES)
                skip = [*given.skip, *others]
                run_cases(given.cases, write, device, scaling.shape_of, SCALING_EFFORT, skip, again=given.again)
            case "launches":
                from benchmarks.explore import explore  # imports Triton, which a CPU need not have

                explore(write, device, given.cases, wide=given.wide)


def _shape_of_op(op: str, name: str, kind: str) -> Shape:
    return next(s for s in BENCHMARKS[op].shapes[kind] if s.name == name)


def run_cases(
    cases: Sequence[tuple[str, str, dict[str, str]]],
    write: Callable[[Line], None],
    device: torch.device,
    shape_of: Callable[[str, str, str], Shape],
    effort: Effort,
    skip: Sequence[str],
    *,
    again: bool = False,
) -> None:
    """Measure the cases one after another, or time them `again`; what goes wrong with one is its result."""

    def heard(provider: str) -> None:
        write({"provider": provider})

    for op, name, gone in cases:
        write({"start": [op, name]})
        benchmark, shape = BENCHMARKS[op], shape_of(op, name, device.type)
        try:
            if again:
                providers = [p for p in benchmark.timed() if p not in skip and p not in gone]
                rows = time_again(benchmark, shape, device, effort, providers, heard=heard)
            else:
                rows = measure_case(benchmark, shape, device, effort, skip, gone=gone, heard=heard)
        except Exception as error:
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises again where the device is lost to this process, which then ends
            write({"failed": [op, name], "reason": first_line(error)})
        else:
            write({"done": [op, name], "rows": rows})


if __name__ == "__main__":
    main()
