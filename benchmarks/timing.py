"""How time is taken, so that the launch, the cache, the clocks and the order do not decide who wins.

On a GPU: the calls on K copies of the inputs, together larger than the second-level cache, are captured in one graph,
so that a replay costs no launches and finds no input in the cache. Before the first event of each sample the device
writes a buffer larger than its cache: it is busy while the host submits the rest, so that no wait for the host lies
between the two events. Where a call cannot be captured the same calls are timed without a graph, and the result says
so. On a CPU: perf_counter around as many calls as fill some milliseconds, over the copies in turn.

Everywhere: samples of all candidates in turn, round by round, so that drifting clocks meet all alike; the median of the
rounds, with the quartiles beside it.

Read next: `ceilings.py`.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[int], Any]  # computes on one copy of the inputs, by its number

GPU_SAMPLE, CPU_SAMPLE = 0.5e-3, 5e-3  # seconds that a sample lasts at least
COLD = 3  # times the second-level cache: what the copies of the inputs and results amount to
MOST_COPIES = 128
LONGEST_CALL = 5.0  # seconds; a slower candidate is not timed
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Seconds a call, one number a round, and how they were taken: "graph", "events" or "clock"."""

    samples: tuple[float, ...]
    method: str
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.samples) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


class Sampler(Protocol):
    """One candidate, ready to be timed."""

    method: str
    note: str

    def sample(self) -> float:
        """Return the seconds of one call."""
        ...


class ClockSampler:
    """On a CPU: the clock around enough calls."""

    method, note = "clock", ""

    def __init__(self, call: Call, copies: int):
        self._call, self._copies, self._next, self._number = call, copies, 0, 1
        first = self._run(1)  # compiles, takes memory
        if first > LONGEST_CALL and self._run(1) > LONGEST_CALL:
            raise TooSlow(first)
        once = self._run(1)
        if once < 10 * CPU_SAMPLE:  # one call in a cold cache would make samples of one call, each as cold, for good
            once = min(once, self._run(1), self._run(1))
        self._number = max(1, math.ceil(CPU_SAMPLE / max(once, 1e-7)))

    def _run(self, number: int) -> float:
        start = time.perf_counter()
        for i in range(number):
            self._call((self._next + i) % self._copies)
        elapsed = time.perf_counter() - start
        self._next += number
        return elapsed / number

    def sample(self) -> float:
        return self._run(self._number)


class TooSlow(Exception):
    """A candidate whose single call takes too long to repeat."""

    def __init__(self, seconds: float):
        super().__init__(f"one call takes {seconds:.1f} s")


class EventSampler:
    """On a GPU: events around calls over all copies, captured in a graph where that can be."""

    def __init__(self, call: Call, copies: int, cover: torch.Tensor, graph: bool):
        self._call, self._copies, self._cover = call, copies, cover
        self.method, self.note = "events", ""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[Any] = []  # results keep their memory, so that each copy writes its own
        call(0)  # compiles, takes memory
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(copies - 1)
        torch.cuda.synchronize()
        if (elapsed := time.perf_counter() - start) > LONGEST_CALL:
            raise TooSlow(elapsed)
        if graph:
            try:
                self._capture()
                self.method = "graph"
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of many kinds: whatever a call does that waits for the device
                self._graph, self._kept = None, []
                torch.cuda.synchronize()
                self.note = f"not captured: {first_line(error)}"
        self._repeats = 1
        self._repeats = max(1, math.ceil(GPU_SAMPLE / max(self.sample() * copies, 1e-7)))

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(min(3, self._copies)):
                self._call(i)
        before = torch.cuda.current_stream()
        before.wait_stream(stream)
        torch.cuda.synchronize()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._kept = [self._call(i) for i in range(self._copies)]
        except Exception:
            torch.cuda.set_stream(before)
            _end_allocating(pool)
            raise
        self._graph = graph
        graph.replay()
        torch.cuda.synchronize()

    def sample(self) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cover.zero_()
        start.record()
        for _ in range(self._repeats):
            if self._graph is not None:
                self._graph.replay()
            else:
                for i in range(self._copies):
                    self._call(i)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / (self._repeats * self._copies)


def _end_allocating(pool: Any) -> None:
    """Let a capture that failed end for the allocator too, which PyTorch 2.11 leaves undone.

    Without this `torch.cuda.empty_cache` would raise in every case that follows.
    """
    end: Callable[[int, Any], None] | None = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        with contextlib.suppress(RuntimeError):  # it has ended
            end(torch.cuda.current_device(), pool)


def cache_bytes(device: torch.device) -> int:
    """Return the size of a GPU's second-level cache."""
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 50 * 2**20


def copies_for(bytes_of_one: int, device: torch.device) -> int:
    """Return how many copies of inputs and results are past the cache; on a CPU two, whose caches are not chased.

    One is enough where a single call moves that much.
    """
    if device.type != "cuda":
        return 2
    return min(MOST_COPIES, math.ceil(COLD * cache_bytes(device) / max(1, bytes_of_one)))


def interleaved(
    candidates: Mapping[str, Call],
    *,
    copies: int,
    device: torch.device,
    rounds: int,
    seconds: float,
    graph: bool = True,
    heard: Callable[[str], object] = lambda name: None,
) -> dict[str, Times | Exception]:
    """Time all candidates in turn and return each one's samples, or the exception that kept it from running.

    Args:
        copies: of the inputs, among which a candidate is called.
        rounds: samples a candidate; fewer, but 3 at least, where `seconds` are over before.
        graph: whether capturing is tried.
        heard: called with the name of each candidate before it is first called, and when one fails later.
    """
    found: dict[str, Times | Exception] = {}
    samplers: dict[str, Sampler] = {}
    cover = torch.empty(4 * cache_bytes(device), dtype=torch.uint8, device=device) if device.type == "cuda" else None
    for name, call in candidates.items():
        heard(name)
        try:
            samplers[name] = (
                ClockSampler(call, copies) if cover is None else EventSampler(call, copies, cover, graph=graph)
            )
        except Exception as error:  # a provider is a stranger's code: what it raises is its result
            found[name] = error
            forget(error)
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        order = list(samplers) if number % 2 == 0 else list(samplers)[::-1]  # no one always follows the same one
        for name in order:
            try:
                samples[name].append(samplers[name].sample())
            except Exception as error:
                heard(name)  # it is to blame where the device is lost, and not who was heard of last
                found[name] = error
                del samplers[name]
                forget(error)
    for name, sampler in samplers.items():
        found[name] = Times(tuple(samples[name]), sampler.method, sampler.note)
    return {name: found[name] for name in candidates}


def forget(error: Exception) -> None:
    """Let go of what an exception's frames hold, gigabytes after running out of memory.

    Raises:
        RuntimeError: the device is lost to this process, as after a wrong address: whoever comes next would be blamed.
    """
    error.__traceback__ = None
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return an exception as one short line.

    >>> first_line(ValueError("no room\\nand more"))
    'ValueError: no room'
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
