"""The live line of a run on standard error: a bar in a terminal, a plain line every few seconds elsewhere.

Read next: `plots.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

REFRESH = 0.25  # seconds between two drawings of the bar; drawn by the training loop itself, no thread takes a core
PLAIN_EVERY = 5.0  # seconds between two plain lines


class Progress:
    """Shows how far a run is. When it is quiet all of its methods but `warn` do nothing."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        """Prepare; nothing is drawn before `start`.

        Args:
            quiet: say nothing at all.
            stream: None: standard error at the time of the call.
        """
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stderr
        self._live = not quiet and self._stream.isatty()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._max_steps = 0
        self._words = ""
        self._first_step = 0
        self._began = self._shown = time.perf_counter()

    def start(self, step: int, max_steps: int) -> None:
        """Begin to show a run that has `step` of its `max_steps` steps behind it."""
        self._max_steps, self._first_step = max_steps, step
        self._began = self._shown = time.perf_counter()
        if not self._live:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
        self._bar = Bar(*columns, console=Console(file=self._stream), auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=max_steps, completed=step, words="")
        self._bar.start()

    def values(self, *, loss: float | None, valid_loss: float | None, tokens_per_second: float) -> None:
        """Take the newest figures; they are shown until the next ones come. Losses in nats, None: none yet."""
        words = [f"loss {loss:.3f}"] if loss is not None else []
        words += [f"valid {valid_loss:.3f}"] if valid_loss is not None else []
        self._words = "  ".join([*words, f"{tokens_per_second:,.0f} tokens/s"])

    def step(self, step: int) -> None:
        """Say that `step` optimiser steps are done; draws at most a few times a second."""
        now = time.perf_counter()
        if self._quiet or now - self._shown < (REFRESH if self._live else PLAIN_EVERY) and step < self._max_steps:
            return
        self._shown = now
        seconds = (now - self._began) / max(step - self._first_step, 1) * (self._max_steps - step)
        words = "  ".join(part for part in (self._words, f"{clock(seconds)} left") if part)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, words=words, refresh=True)
        else:
            self._print(f"step {step:,}/{self._max_steps:,}  {words}")

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a line that nobody shall miss, in a quiet run too."""
        if self._bar is not None:
            self.note(text)
        else:
            self._print(f"minillm: {text}")

    def _print(self, text: str) -> None:
        """Print a line; a log on a disk that is full must not end the run."""
        with suppress(OSError):
            print(text, file=self._stream, flush=True)

    def share(self, what: str, done: int, total: int) -> None:
        """Show how much of some work before the run is done, in any unit; the bar goes when all of it is."""
        now = time.perf_counter()
        if done >= total:
            self.stop()
        elif self._live:
            if self._bar is None:
                from rich.console import Console
                from rich.progress import BarColumn, TaskProgressColumn, TextColumn
                from rich.progress import Progress as Bar

                columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
                self._bar = Bar(*columns, console=Console(file=self._stream), auto_refresh=False, transient=True)
                self._task = self._bar.add_task(what, total=total)
                self._bar.start()
            assert self._task is not None
            self._bar.update(self._task, completed=done, refresh=True)
        elif not self._quiet and now - self._shown >= PLAIN_EVERY:
            self._shown = now
            self._print(f"{what}  {done / total:.0%}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Take the bar away however the block ends: what it hides of the terminal, the cursor, comes back."""
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Take the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Mute(Progress):
    """Says nothing, not even a warning: of a process that is not the first of its run."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def _print(self, text: str) -> None:
        """Print nothing."""


def clock(seconds: float) -> str:
    """Return a duration as a person reads it.

    >>> clock(7.4), clock(75), clock(3 * 3600 + 120)
    ('0:07', '1:15', '3:02:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
