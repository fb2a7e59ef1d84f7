"""Ctrl-C during training: the first one asks to stop after the running step, the second one stops at once.

Read next: `failures.py`.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """A context in which Ctrl-C (SIGINT) sets `asked` once, instead of raising KeyboardInterrupt amid a step.

    Outside the main thread Python lets nobody set a handler; the context then changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before)  # a second Ctrl-C does what it did before

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
            # a handler that C code installed cannot be put back by name: fall back to Python's own
            self._before = signal.default_int_handler if self._before is None else self._before
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False
