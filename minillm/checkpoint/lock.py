"""One writer a folder: a lock that the system lets go of when its process dies, however it dies.

Read next: `run_folder.py`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minillm.checkpoint.files import explained
from minillm.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: no lock is taken there
    fcntl = None

LOCK = "lock"  # file in a folder while somebody trains or writes in it; left by one who was killed, and then free
HELD = (errno.EWOULDBLOCK, errno.EACCES)
ATTEMPTS, PAUSE = 10, 0.02  # times and seconds: somebody who only looks holds the lock for an instant


@contextmanager
def locked(path: Path, what: str, *, wait: Callable[[int | None], object] | None = None) -> Iterator[bool]:
    """Hold the lock file `path` inside the block; it has this process's number, and goes at the end.

    Args:
        path: in a folder that exists.
        what: is locked, for the error's text.
        wait: called once with the number of the process that holds it, for which is then waited, however long; None: no
            such wait.
    Yields:
        whether it is held: False where the system, or the file system, knows no locks.
    Raises:
        InputError: another process holds it; the text has its number.
    """
    if fcntl is None:
        yield False
        return
    with explained(path):
        descriptor = _take(path, what, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # while it is held: whoever opened it before sees that it is not there any more
            path.unlink(missing_ok=True)
            os.close(descriptor)


def holder(path: Path) -> int | None:
    """Return the number of the process that holds the lock file `path`, None where nobody does. Changes nothing."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _number(descriptor) if error.errno in HELD else None
    finally:
        os.close(descriptor)
    return None


def _take(path: Path, what: str, wait: Callable[[int | None], object] | None) -> int | None:
    """Return the descriptor that holds the lock; None where the file system knows no locks."""
    assert fcntl is not None
    attempt = 0
    while True:
        attempt += 1
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except OSError as error:
            number = _number(descriptor)
            os.close(descriptor)
            if error.errno not in HELD:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    return None
                raise
            if attempt == ATTEMPTS:
                if wait is None:
                    who, how = (number, f", or stop it with kill {number}") if number else ("of another user", "")
                    raise InputError(f"{what} is being trained by process {who}; wait for it to end{how}") from error
                wait(number)
        else:
            os.close(descriptor)  # its holder took the file away between our opening and locking it
            if attempt >= ATTEMPTS and wait is None:
                raise InputError(f"{what} is being trained by another process; wait for it to end")
        time.sleep(PAUSE)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the file that is open still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _number(descriptor: int) -> int | None:
    """Return the process's number in a lock file that is open."""
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else None
