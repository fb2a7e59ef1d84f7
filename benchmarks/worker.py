"""A process that measures and writes one JSON line for all that it finds: python -m benchmarks.worker

It is one of its own because a kernel with a wrong address ends its process's use of the GPU, and one that never ends
can only be stopped from outside. Before each case it writes which one comes: `sections.py` knows whom to blame.

Read next: `sections.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings
from benchmarks.measure import EFFORTS, measure_case
from benchmarks.ops import BENCHMARKS
from benchmarks.timing import first_line


def cases(kind: str, *, quick: bool, ops: list[str] | None) -> list[tuple[str, str]]:
    """Return (op, shape) in the order of measurement: every op's first shape, then every op's second, and so on."""
    chosen = [b for name, b in BENCHMARKS.items() if ops is None or name in ops]
    ranks = 1 if quick else max(len(b.shapes[kind]) for b in BENCHMARKS.values())
    return [(b.name, b.shapes[kind][i].name) for i in range(ranks) for b in chosen if i < len(b.shapes[kind])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("what", choices=("ceilings", "ops"))
    parser.add_argument("--to", type=Path, required=True, help="file to which lines are appended")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", type=json.loads, default=[], help="[[op, shape], ...]")
    parser.add_argument("--skip", type=json.loads, default=[], help="[provider, ...]")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    effort = EFFORTS[device.type][given.quick]
    with given.to.open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        if given.what == "ceilings":
            for found in ceilings.measure(device, rounds=effort.rounds, seconds=effort.seconds):
                write({"ceilings": found})
        else:
            run_cases(given.cases, write, device, quick=given.quick, skip=given.skip)


def run_cases(
    names: list[tuple[str, str]],
    write: Callable[[dict[str, Any]], None],
    device: torch.device,
    *,
    quick: bool,
    skip: list[str],
) -> None:
    """Measure the cases one after another; what goes wrong with one is its result."""
    for op, shape_name in names:
        benchmark = BENCHMARKS[op]
        shape = next(s for s in benchmark.shapes[device.type] if s.name == shape_name)
        write({"start": [op, shape_name]})
        try:
            rows = measure_case(benchmark, shape, device, EFFORTS[device.type][quick], skip)
        except Exception as error:
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises again where the device is lost to this process, which then ends
            write({"failed": [op, shape_name], "reason": first_line(error)})
        else:
            write({"done": [op, shape_name], "rows": rows})


if __name__ == "__main__":
    main()
