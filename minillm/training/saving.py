"""Checkpoints written off the training path: a copy of the moment is taken at once, a thread writes it.

    training thread    ... step 8 | copy | step 9 | step 10 | step 11 ...
    writing thread                  | files of step 8, flushed, read back, renamed |

At most one write is in flight: the next one waits for it, so that no more than one copy is in memory. What went wrong
in a write comes up in the training thread at its next step.

Read next: `trainer.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minillm.checkpoint.sharded import whole
from minillm.errors import InputError


def copies(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return copies on the CPU, whole, which later steps do not change.

    Args:
        tensors: by name; of those that are spread over processes all of these must ask alike.
        keep: False: take part in gathering them, and return nothing; only the process that writes needs them.

    Cost: the tensors' size in the host's memory, and one pass over them; of one that is spread each process receives
        all, for a moment.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            # only CUDA is waited for below; from any other device the copy has to be there on return
            found[name] = gathered.to("cpu", copy=True, non_blocking=gathered.device.type == "cuda")
    if any(tensor.device.type == "cuda" for tensor in tensors.values()):
        torch.cuda.synchronize()
    return found


class Saver:
    """Writes one checkpoint at a time in a thread of its own.

    saved_step: of the last checkpoint that is whole on the disk; -1: none yet.
    """

    def __init__(self, on_failure: Callable[[InputError], None]) -> None:
        """Make no thread yet.

        Args:
            on_failure: called in the training thread with what a write amid the run could not do; raises it, or says it
                and lets the run go on. Any other exception of the writing thread is raised as it is.
        """
        self.saved_step = -1
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, step: int, write: Callable[[], object]) -> None:
        """Let `write` run in the thread, after the write before it has ended."""
        self._join()
        self.check()

        def run() -> None:
            try:
                write()
                self.saved_step = step
            except BaseException as error:  # whatever it is, the training thread raises it
                self._error = error

        self._thread = threading.Thread(target=run, name=f"checkpoint of step {step}", daemon=True)
        self._thread.start()

    def fail(self, error: InputError) -> None:
        """Take an error that kept a write from beginning as one of the writing thread."""
        self._join()
        self._error = error

    def check(self) -> None:
        """Hand on what went wrong in a write that has ended; waits for none."""
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        if self._thread is None and self._error is not None:
            error, self._error = self._error, None
            if not isinstance(error, InputError):
                raise error
            self._on_failure(error)

    def wait(self) -> int:
        """Wait for the write in flight, if there is one, and return `saved_step`."""
        self._join()
        return self.saved_step

    def finish(self) -> None:
        """Wait for the write in flight, and raise what went wrong in it: it was the last one."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def forget(self) -> None:
        """Forget what went wrong in the write before: it is tried again."""
        self._error = None

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the write in flight; its error is forgotten where another one is being raised."""
        self._join()
        self._error = None
