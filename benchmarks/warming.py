"""On a GPU: while tests are run, compile what the timed sections will want compiled.

A compiler of a whole model takes most of a minute, and the timed sections have few. Nothing is timed while the tests
run, and their processes leave cores idle; what is compiled then lies in the compilers' caches on disk, and the sections
that follow find it there. Best effort: whatever is not done when the tests are, or fails, is compiled when it is
needed.

Read next: `sampling.py`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import child
from benchmarks.context import Context

Command = list[str]
# providers of ops that have something to compile
COMPILED = ("torch.compile", "FlexAttention", "fused", "fused (Hopper)")


@contextlib.contextmanager
def warming(context: Context) -> Iterator[None]:
    """Compile beside what is done inside the block, for the sections that are to follow; end with it."""
    if context.kind != "cuda":
        yield
        return
    ended = threading.Event()
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        lanes = [threading.Thread(target=run, args=(lane, ended)) for lane in commands(context, Path(folder))]
        for lane in lanes:
            lane.start()
        try:
            yield
        finally:
            ended.set()
            for lane in lanes:
                lane.join()


def commands(context: Context, folder: Path) -> list[list[Command]]:
    """Return what to run, a list for each of those that go on beside each other."""
    from benchmarks import worker
    from benchmarks.ops import BENCHMARKS
    from benchmarks.training.recipes import recipes

    python = [sys.executable, "-m"]
    lanes: list[list[Command]] = []
    if "recipes" in context.chosen:
        ours, peers = (
            [
                [*python, "benchmarks.training.stepper", r.name, c.name, "--warm", "--to", str(folder / "recipes")]
                for r in recipes().values()
                for c in r.contenders
                if r.kind == "cuda" and c.compiled and c.peer == peer
            ]
            for peer in (False, True)
        )
        lanes += [ours, peers[::2], peers[1::2]]  # a peer takes longest: of three one after another two would be done
    if "ops" in context.chosen:
        names = None if context.ops is None else list(context.ops)
        cases = [[op, shape, {}] for op, shape in worker.cases("cuda", quick=True, ops=names)]
        others = {name for b in BENCHMARKS.values() for name in b.providers()} - set(COMPILED)
        words = ["ops", "--quick", "--cases", json.dumps(cases), "--skip", json.dumps(sorted(others))]
        lanes.append([[*python, "benchmarks.worker", *words, "--to", str(folder / "ops")]])
    return lanes


def run(lane: Sequence[Command], ended: threading.Event) -> None:
    """Run commands one after another until the time is over; what comes of them is of no interest."""
    for command in lane:
        if ended.is_set():
            return
        process = child.start(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not ended.wait(0.2):
            pass
        child.end(process)
