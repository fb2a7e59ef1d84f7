"""A process that trains one contender, as many steps at a time as it is told: python -m benchmarks.training.stepper

One of its own for each contender: memory, compilers, allocator and a lost GPU are its alone, and who listens can let
several take turns. It builds the contender and writes what it is; told to warm up it takes its first steps; told to
time it takes as many steps as fill some seconds, waits for the device and writes the seconds of one; told to profile it
writes what a step's time goes to. Between its turns it keeps weights and optimiser on a GPU and gives back the rest;
the first step of a turn takes it again, untimed.

Read next: `section.py`, which tells it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import minillm_kernels as mk
import torch

from benchmarks.ceilings import SHORT
from benchmarks.timing import first_line
from benchmarks.training.build import make_trainer, task_of
from benchmarks.training.recipes import recipes
from benchmarks.training.work import Work, counted
from minillm.model.count import count_parameters
from minillm.training.trainer import Trainer

PROFILED_STEPS = {"cuda": 3, "cpu": 1}  # on a GPU enough for the host to be ahead of it, as in training
WARM_STEPS = 3  # the first compiles, the second takes memory, the third tells how long a step lasts
# What PyTorch calls spans of a program on a GPU, whose kernels are listed beside them: optimisers, compiled graphs
SPAN = re.compile(r"Optimizer\.|ProfilerStep|## ")
LONGEST_NAME = 100  # characters of a kernel's name, which a template's arguments can make thousands
WARM_SHARE = 0.4  # of a GPU's memory, where another one and tests are at work beside: with --warm
Line = dict[str, Any]


class Stepper:
    """One contender under the trainer, and the time of its steps."""

    def __init__(self, trainer: Trainer, device: torch.device, count_work: bool = False):
        self.trainer, self.device, self.count_work = trainer, device, count_work
        self.before = resident_bytes("VmRSS")
        self.seconds = 0.0  # of one step

    def warm_up(self) -> Line:
        """Take the first steps; return how long they took, the first loss, and the memory at the peak of a step."""
        self.trainer.model.train()
        start = time.perf_counter()
        first = self._figures(self.trainer.take_step())
        to_first = time.perf_counter() - start
        for _ in range(WARM_STEPS - 1):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.seconds, loss = self._steps(1)
        line: Line = {"to_first_step": to_first, "loss": first[0], "norm": first[1]}
        if (peak := self._peak_bytes()) is not None:
            line["peak_bytes"] = peak
        if self.count_work:
            work: Work = counted(self.trainer.take_step)
            line["work"] = {"bytes": work.num_bytes, "flops": work.flops}
        self._give_back()
        return line

    def turn(self, seconds: float) -> Line:
        """Take as many steps as fill `seconds`; return the seconds of one, and the last loss."""
        if self.device.type == "cuda":
            self._steps(1)
        number = max(1, math.ceil(seconds / max(self.seconds, 1e-6)))
        self.seconds, loss = self._steps(number)
        self._give_back()
        return {"seconds": self.seconds, "steps": number, "loss": loss}

    def profile(self) -> Line:
        """Take steps under torch.profiler; return what each kernel (on a CPU: op) took of one, the longest first.

        On a GPU also how long of a step it computed nothing.
        """
        from torch.profiler import ProfilerActivity, profile

        on_gpu, steps = self.device.type == "cuda", PROFILED_STEPS[self.device.type]
        self._steps(1)
        kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
        with profile(activities=kinds, acc_events=True) as profiled:  # else PyTorch 2.11 warns of cycles; there is one
            self._steps(steps)
        self._give_back()
        found: dict[str, tuple[int, float]] = {}
        busy: list[tuple[float, float]] = []
        for event in profiled.events() or ():
            if str(event.device_type).endswith("CUDA") == on_gpu and not SPAN.match(event.name):
                calls, seconds = found.get(event.name, (0, 0.0))
                taken = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
                found[event.name] = calls + 1, seconds + 1e-6 * taken
                busy.append((1e-6 * event.time_range.start, 1e-6 * event.time_range.end))
        longest = sorted(found.items(), key=lambda item: -item[1][1])
        of_one = [
            [name[:LONGEST_NAME], max(1, round(calls / steps)), taken / steps] for name, (calls, taken) in longest
        ]
        return {"kernels": of_one, **({"idle": idle(busy) / steps} if on_gpu else {})}

    def _steps(self, number: int) -> tuple[float, float]:
        """Return the seconds of one of `number` steps, and the loss of the last."""
        start = time.perf_counter()
        figures = None
        for _ in range(number):
            figures = self.trainer.take_step()
        loss, _ = self._figures(figures)  # reading it waits for the device, as the trainer does when it logs
        return (time.perf_counter() - start) / number, loss

    @staticmethod
    def _figures(figures: torch.Tensor | None) -> tuple[float, float]:
        """Return loss and norm of the gradient.

        Raises:
            ValueError: the step had no targets, or counted other targets than the batch has.
        """
        if figures is None:
            raise ValueError("a batch without targets")
        loss, norm, excess = figures.tolist()
        if excess:
            raise ValueError(f"the loss counts {excess:+g} targets beside those of the batch")
        return loss, norm

    def _peak_bytes(self) -> int | None:
        """Return the memory at the peak: a GPU's of one step, weights included; a CPU's since the model was built."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        peak = resident_bytes("VmHWM")
        return None if peak is None or self.before is None else peak - self.before

    def _give_back(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def idle(busy: Iterable[tuple[float, float]]) -> float:
    """Return the seconds between the first start and the last stop in which no (start, stop) of these lies.

    >>> idle([(0.0, 2.0), (1.0, 3.0), (4.0, 5.0), (4.5, 4.75)])
    1.0
    """
    spent, end = 0.0, math.inf
    for start, stop in sorted(busy):
        spent += max(0.0, start - end)
        end = stop if end == math.inf else max(end, stop)
    return spent


def resident_bytes(name: str) -> int | None:
    """Return the memory of this process, now (VmRSS) or at its peak (VmHWM), in bytes; None where Linux is not."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def obey(stepper: Callable[[], Stepper], orders: Any, write: Callable[[Line], None], about: Line) -> None:
    """Build, then do what each line of `orders` says, until there are no more; the first failure is the last line."""
    try:
        start = time.perf_counter()
        made = stepper()
        parameters = count_parameters(made.trainer.model)
        known = {"parameters": parameters, "dtype": SHORT[made.trainer.compute_dtype]}
        write({"built": {**about, **known, "seconds": time.perf_counter() - start}})
        for line in orders:
            order = json.loads(line)
            if "seconds" in order:
                write({"turn": made.turn(order["seconds"])})
            else:
                write({"profile": made.profile()} if "profile" in order else {"warm": made.warm_up()})
    except Exception as error:  # of any kind: a contender is a stranger's code, and what it raises is its result
        write({"failed": first_line(error)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.stepper", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("contender")
    parser.add_argument("--to", type=Path, required=True, help="file to which lines are appended")
    parser.add_argument("--warm", action="store_true", help="warm up and end, for what the compilers then keep on disk")
    parser.add_argument("--count", action="store_true", help="count bytes and operations of a step too")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipes()[given.recipe]
    contender = recipe.contender(given.contender)
    with given.to.open("a", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        if contender.by_hand:
            stack.enter_context(mk.backend("reference", *contender.by_hand))

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        def stepper() -> Stepper:
            return Stepper(make_trainer(recipe, contender, device), device, given.count)

        about = task_of(recipe, contender)
        if given.warm and device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(WARM_SHARE)
        obey(stepper, [json.dumps({"warm": True})] if given.warm else sys.stdin, write, about)


if __name__ == "__main__":
    main()
