r"""Who holds up the others: each process tells where it is, and names the one that does not go on.

In a collective all processes wait for the last one, and the one that waits cannot tell for whom. So each writes two
things into the store that they share, once a second, from a thread that goes on while the main one is stuck:

    place    (step, stage): how far its main thread has come; the stages of a step are in the order of `STAGES`
    beats    a count that grows as long as the process is alive and not stopped

A process whose own place has not changed for `timeout` seconds looks back at what the others wrote half that time ago.
One that is at the same place as then, and behind, holds it up; one whose beats stand still is dead, stopped or out of
reach. Where all stand at one place nobody is named: the backend's own, longer timeout ends that.

Read next: `trainer.py`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

STAGES = ("beginning", "preparing the batch", "computing", "summing gradients", "updating", "evaluating", "saving")
DONE = -1  # in place of beats: the process has ended well, and is waited for by nobody
EVERY = 1.0  # seconds between two beats; ten in `timeout` at least


@dataclass(frozen=True)
class Sign:
    """What a process wrote last. place: (step, number of its stage). who: its machine and process."""

    place: tuple[int, int]
    beats: int
    who: str

    def __str__(self) -> str:
        step, stage = self.place
        return f"{STAGES[stage]} in step {step:,}"


def connection(store: Store) -> Store:
    """Return a connection of its own to a store: another thread that waits in the first one does not hold it up."""
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue]: not in PyTorch's stubs yet


class Watch:
    """The thread of one process; `at` is called from its main thread."""

    def __init__(self, store: Store, *, rank: int, size: int, timeout: float, end: Callable[[str], None]) -> None:
        """Prepare; `start` begins to write.

        Args:
            store: shared by all processes; a connection of its own is made.
            timeout: seconds.
            end: called from the thread, once, with the line that names who holds up this process.
        """
        self._store, self._rank, self._timeout, self._end = connection(store), rank, timeout, end
        self._keys = [f"watch/{other}" for other in range(size)]
        self._every = min(EVERY, timeout / 10)
        self._who = f"process {os.getpid()} on {socket.gethostname()}"
        self._place, self._since = (0, 0), time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="minillm watch")

    def start(self) -> None:
        """Write the first sign, so that every key is there, and go on in the background."""
        self._write(0)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and tell the others not to wait for signs."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._write(DONE)

    def at(self, stage: str, step: int | None = None) -> None:
        """Note that the main thread has come so far.

        Args:
            stage: one of `STAGES`.
            step: the optimiser step that is being taken, counted from 1; None: the same as before.
        """
        step = self._place[0] if step is None else step
        self._place, self._since = (step, STAGES.index(stage)), time.monotonic()

    def silent(self) -> list[str]:
        """Return which other processes have not given a sign for three beats, in words; waits so long."""
        before = self._signs()
        time.sleep(3 * self._every)
        return culprits(before, self._signs(), rank=self._rank, place=None)

    def _run(self) -> None:
        try:
            self._look_around()
        except RuntimeError:  # nobody is there any more who keeps the store
            return

    def _look_around(self) -> None:
        beats, before, looked = 0, None, 0.0
        while not self._stop.wait(self._every):
            beats += 1
            self._write(beats)
            waited = time.monotonic() - self._since
            if waited < self._timeout / 2:
                before = None
            elif before is None:
                before, looked = self._signs(), time.monotonic()
            elif waited >= self._timeout and time.monotonic() - looked >= self._timeout / 2:
                named = culprits(before, self._signs(), rank=self._rank, place=self._place)
                if named:
                    own = Sign(self._place, beats, self._who)
                    self._end(f"{'; '.join(named)}; rank {self._rank} has waited {waited:.0f} s for it, {own}")
                    return

    def _write(self, beats: int) -> None:
        self._store.set(self._keys[self._rank], json.dumps([*self._place, beats, self._who]))

    def _signs(self) -> list[Sign | None]:
        """Return what each process wrote last; None: nothing yet."""
        signs: list[Sign | None] = []
        for key in self._keys:
            if not self._store.check([key]):
                signs.append(None)
                continue
            step, stage, beats, who = json.loads(self._store.get(key))
            signs.append(Sign((step, stage), beats, who))
        return signs


def culprits(
    before: Sequence[Sign | None], now: Sequence[Sign | None], *, rank: int, place: tuple[int, int] | None
) -> list[str]:
    """Return the processes that are silent, or else those that have stood still behind `place`, in words.

    Args:
        before, now: what each process had written at two times; None: nothing yet.
        rank: who asks; it does not name itself.
        place: where it is itself; None: look for the silent ones alone.
    """
    silent, behind = [], []
    for other, (then, last) in enumerate(zip(before, now, strict=True)):
        if other == rank or (last is not None and last.beats == DONE):
            continue
        if last is None:
            silent.append(f"rank {other} has never begun")
        elif then is not None and last.beats == then.beats:
            silent.append(f"rank {other} ({last.who}) gives no sign of life since it was {last}")
        elif place is not None and then is not None and last.place == then.place < place:
            behind.append(f"rank {other} ({last.who}) holds up the others, {last}")
    return silent or behind
