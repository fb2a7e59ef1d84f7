"""The errors that are the user's to mend. The command line prints a single line for each and exits with status 2.

Read next: `config.py`, which raises InputError for unknown keys.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NO_ROOM = (*FULL_DISK, errno.EFBIG)  # what a write can fail with that does not know its file's name


class InputError(ValueError):
    """What the user gave is wrong: the text says what was asked, what came and what to do, in one line."""


class SaidElsewhere(InputError):
    """Another process of the same run ended with this error and has said so; the command line does not repeat it."""


class Stopped(Exception):
    """The run was asked to end before its end, and has saved itself; `status` is the exit status that says by whom."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def warn(text: str) -> None:
    """Say on standard error, in one line, what goes on but should be known."""
    with suppress(OSError):  # a log on a disk that is full is no reason to stop
        print(f"minillm: {text}", file=sys.stderr, flush=True)


def disk_trouble(error: OSError) -> str | None:
    """Return one line for a read or write that the system refused; None where the error is of another kind: a defect.

    >>> disk_trouble(OSError(errno.ENOSPC, "No space left on device"))
    'writing: the disk is full; free some space and run again'
    """
    if error.filename is None and error.errno not in NO_ROOM:
        return None
    reason = "the disk is full; free some space and run again" if error.errno in FULL_DISK else error.strerror
    return f"{error.filename or 'writing'}: {reason}"
