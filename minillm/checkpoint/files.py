"""Files and folders that appear whole or not at all, and failing writes in one line.

What is written goes to a temporary name beside its place, is flushed to the disk, and takes its name in one rename:
after a crash or with a full disk the old content is still there and nothing half-written bears a real name.

Read next: `native.py`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minillm.errors import InputError

WRITING = ".writing-"  # prefix of what is not finished; `remove_leftovers` clears what a crash left
REMOVING = ".removing-"  # prefix of what is on its way out

ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "make it writable or choose another folder",
    errno.EPERM: "make it writable or choose another folder",
    errno.EROFS: "choose a folder on a disk that is not read-only",
}


def reason(error: Exception) -> str:
    """Return the system's words for a failed read or write, with advice where there is any.

    >>> reason(OSError(errno.ENOSPC, "No space left on device"))
    'No space left on device; free some space'
    """
    if isinstance(error, OSError):
        number, words = error.errno, error.strerror or str(error)
    else:  # safetensors puts the system's error number into its text
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
        words = os.strerror(number) if number is not None else str(error)
    advice = ADVICE.get(number) if number is not None else None
    return f"{words}; {advice}" if advice else words


@contextmanager
def explained(path: Path, safe: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn a failing write inside the block into an InputError that names `path`.

    Args:
        path: the file as the user knows it, also while it is written under a temporary name.
        safe: what is not lost, such as "checkpoint step-000250 is safe", or what finds out; it ends the line.
    Raises:
        InputError: in place of OSError and SafetensorError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        known = safe if isinstance(safe, str) else safe()
        raise InputError(f"cannot write {path}: {reason(error)}" + (f"; {known}" if known else "")) from error


def sync_file(path: Path) -> None:
    """Return when the content of `path` is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Ask the system to drop a file that is on the disk from its memory, so that reading it back reads the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`: the system may take less than it is given at once."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_new(path: Path, content: bytes) -> None:
    """Write a file, flush it to the disk and read it back.

    Args:
        path: in a folder that exists; a file that stands there is written over, so write beside its place.
        content: all of it.
    Raises:
        OSError: it cannot be written, or what is read back differs from what was written.

    Cost: one flush, and the file's size read.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    forget_cached(path)
    if path.read_bytes() != content:
        raise OSError(errno.EIO, "what is on the disk differs from what was written")


def write_bytes(path: Path, content: bytes, *, safe: str = "") -> None:
    """Replace the content of `path` in one step that survives a crash.

    Args:
        path: a file in a folder that exists.
        content: the whole new content.
        safe: what is not lost if this fails; see `explained`.
    Raises:
        InputError: the disk is full, the folder not writable, ...; `path` then has its old content.
    """
    draft = path.with_name(f"{WRITING}{path.name}")
    with explained(path, safe):
        try:
            write_new(draft, content)
            os.replace(draft, path)
            sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, safe: str = "") -> None:
    """Replace the content of `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), safe=safe)


@contextmanager
def new_folder(path: Path, *, safe: str = "") -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it becomes `path`, all of it on the disk.

    Args:
        path: the folder's final place; a folder that stands there is replaced.
        safe: what is not lost if this fails; see `explained`.
    Raises:
        InputError: as in `write_text`; then, and on any other exception, what was written is gone again.

    Cost: one flush per file and three per folder; on a disk with 1 ms flushes some 10 ms.
    """
    draft = path.with_name(f"{WRITING}{path.name}")
    try:
        with explained(path, safe):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        yield draft
        with explained(path, safe):
            for inside in draft.rglob("*"):
                sync_folder(inside) if inside.is_dir() else sync_file(inside)
            sync_folder(draft)
            if path.exists():
                remove_folder(path)
            os.replace(draft, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def other_entry(folder: Path, known: Callable[[str], bool]) -> str | None:
    """Return the name of the first entry of a folder that is no file of a known name, None where there is none.

    What is to be replaced is asked this before: somebody may have put something of their own there.
    """
    return min((path.name for path in folder.iterdir() if not known(path.name) or path.is_dir()), default=None)


def remove_folder(path: Path) -> None:
    """Remove a folder so that it never stands half-empty under its own name."""
    doomed = path.with_name(f"{REMOVING}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, there or not."""
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def is_passing(name: str) -> bool:
    """Return whether a file or folder of this name is being written or removed."""
    return name.startswith((WRITING, REMOVING))


def remove_leftovers(folder: Path, but: Path | None = None) -> None:
    """Remove what an interrupted write or removal left in `folder`, all but one that is still being written."""
    for path in folder.iterdir():
        if is_passing(path.name) and path != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_table(path: Path, *, whole: str, mend: str) -> dict[str, Any]:
    """Return the table in a JSON file.

    Args:
        whole: what is not whole where the file is missing, and what to do, for the error's text.
        mend: what to do where it is damaged.
    Raises:
        InputError: the file is missing, cannot be read or is damaged.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {whole}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {mend}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} is damaged (no table in it); {mend}")
    return table
