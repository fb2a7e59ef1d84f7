"""Ctrl-C and SIGTERM during training: the first one asks to stop after the running step, the second one stops at once.

Under torchrun later ones are ignored, to the end of the process. torchrun sends a signal of its own to each of its
processes when it gets one, and when one of them has failed, so a second one says nothing about the user's wish, and
amid the last save it would cost that. torchrun itself waits 30 s (its --shutdown-timeout), then it sends SIGKILL.

Read next: `failures.py`.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of Ctrl-C; of kill, a batch system's time limit and a machine's shutdown


class Interrupt:
    """A context in which SIGINT or SIGTERM sets `asked` once, instead of ending the process amid a step.

    asked: number of the signal that came; None: none did.
    repeated: whether others than the user send signals, torchrun: all after the first one are then ignored for good.

    Outside the main thread Python lets nobody set a handler; the context then changes nothing.
    """

    def __init__(self, *, repeated: bool = False) -> None:
        self.asked: int | None = None
        self.repeated = repeated
        self._before: dict[int, Any] = {}

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal: one that came, or one of which another process of the run says so."""
        self.asked = number
        self._put_back()  # a second one does what it did before, or nothing

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.repeated and self.asked else handler)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.signal(number, self.ask)
                if handler is None:  # C code installed it, and it cannot be put back by name: Python's own instead
                    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                self._before[number] = handler
        return self

    def __exit__(self, *exception: object) -> None:
        self._put_back()
        self._before.clear()
