"""A process of its own that measures: started, told what to do, listened to, and ended when its time is over.

A kernel with a wrong address ends its process's use of the GPU, and one that never ends can only be stopped from
outside. A child writes one JSON line into a file for all that it finds; who listens knows from the last line what it
was about when it died.

Read next: `worker.py`, `training/stepper.py`, the two kinds of children.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

PATIENCE = 120.0  # seconds without a line after which a child is ended
PAUSE = 0.05  # seconds between two looks
SIGNALS = [signal.SIGINT, signal.SIGTERM]  # that ask a run to end
if hasattr(signal, "SIGHUP"):  # Windows has none
    SIGNALS.append(signal.SIGHUP)
ERROR = re.compile(r"([\w.]+(Error|Exception)|\s*what\(\)): ")  # as Python and C++ end with it


def environment(threads: int | None = None) -> dict[str, str]:
    """Return the environment of a child: this checkout's packages, and no interpreter, which is never timed.

    Args:
        threads: on the CPU for one op; None: PyTorch's own choice.
    """
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), kept.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # peers are built from sizes: nothing is fetched
    kept |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return kept | offline | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}


class Child:
    """python -m MODULE WORDS --to FILE, and the lines that it writes into that file.

    reason: why there are no more lines; empty while there may be, and where the child ended well.
    patience: seconds of silence after which it is ended; None: `PATIENCE`. threads: see `environment`.
    """

    def __init__(
        self, module: str, words: Sequence[str] = (), *, patience: float | None = None, threads: int | None = None
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        self._path, self._log = Path(self._folder.name, "lines"), Path(self._folder.name, "log")
        self._path.touch()
        self._file = self._path.open(encoding="utf-8")
        self._rest, self._ready = "", list[str]()
        self._patience = PATIENCE if patience is None else patience
        self.reason = ""
        command = [sys.executable, "-m", module, *words, "--to", str(self._path)]
        with self._log.open("w", encoding="utf-8") as log, signals_held_back() as came:
            self._child = start(command, threads=threads, stdin=subprocess.PIPE, stdout=log)
        self._heard = time.monotonic()
        try:
            for number in came:
                signal.raise_signal(number)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._child)
        self._file.close()
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):  # what was still to be written to it
                self._child.stdin.close()
        self._folder.cleanup()

    def tell(self, what: dict[str, Any]) -> None:
        """Write a line to the child; one that is gone is noticed when it is listened to."""
        assert self._child.stdin is not None
        self._heard = time.monotonic()
        with contextlib.suppress(OSError):
            self._child.stdin.write(json.dumps(what).encode() + b"\n")
            self._child.stdin.flush()

    def line(self, until: float) -> dict[str, Any] | None:
        """Return the child's next line, or None where it ended or had to: at `until`, or when it was silent for long.

        Args:
            until: on the clock of time.monotonic.
        """
        while not self._ready:
            if not self._look():
                return None
            now = time.monotonic()
            if self._ready:
                break
            if now > until or now - self._heard > self._patience:
                silent = f"more than {self._patience:.0f} s without a result"
                self.reason = "no time left in the budget" if now > until else silent
                end(self._child)
                return None
            time.sleep(PAUSE)
        return json.loads(self._ready.pop(0))

    def come(self) -> list[dict[str, Any]] | None:
        """Return the lines that have come since the last time, without waiting; None where there are no more."""
        if not self._look():
            return None
        lines, self._ready = self._ready, []
        return [json.loads(line) for line in lines]

    def _look(self) -> bool:
        """Read what has come; return False where nothing has, and nothing will."""
        status = self._child.poll()  # before reading: what it wrote last is then read too
        self._rest += self._file.read()
        *whole, self._rest = self._rest.split("\n")
        self._ready += whole
        if whole:
            self._heard = time.monotonic()
        elif status:
            self.reason = f"the process ended with status {status}: {self._last_words()}"
        return bool(whole) or status is None

    def lines(self, until: float) -> Iterator[dict[str, Any]]:
        """Yield lines as they come, until there are no more."""
        while (line := self.line(until)) is not None:
            yield line

    def _last_words(self) -> str:
        lines = [x for x in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
        errors = [x.strip() for x in lines if ERROR.match(x)]  # under those of a GPU stands advice on how to find them
        return (errors or lines or ["it said nothing"])[-1][:200]


@contextlib.contextmanager
def signals_held_back() -> Iterator[list[int]]:
    """Note the signals that come inside the block, for whoever raises them behind it.

    A handler that raises while a process is being started would lose it: it runs, and nobody has its number.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one meets signals, nor may set handlers
        before = {number: own for number in SIGNALS if callable(own := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def start(command: Sequence[str], *, threads: int | None = None, **streams: Any) -> subprocess.Popen[Any]:
    """Start a process in a group of its own, so that those which it starts can be ended with it."""
    surroundings: dict[str, Any] = {"cwd": ROOT, "env": environment(threads), "start_new_session": True}
    return subprocess.Popen(command, stderr=subprocess.STDOUT, **surroundings, **streams)


def end(child: subprocess.Popen[Any]) -> None:
    """End a process that still runs, and what it started, and wait for it; one that has ended is left alone."""
    if child.poll() is None:
        with contextlib.suppress(OSError):  # it may end on its own in between
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
