"""A new run takes its place only when it is ready: until then whatever stands there, an old run too, stays as it is.

    RUN/.writing-run/    config.toml, tokenizer/, tokens/ ... of the new run, while they are made
    RUN/.removing-run/   what they replace, while the names change hands, under the names that it had. It comes back if
                         one cannot change; if the process ends before all have, the next beginning puts it back

Read next: `../pretrain.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minillm.checkpoint import files
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import warn

NEW_NAMES = ".new-names"  # in what was set aside: names in the new run that the old one had not, a line each


@contextmanager
def beginning(folder: RunFolder, overwrite: bool = False) -> Iterator[RunFolder]:
    """Make and hold the folder of a new run, and yield a draft beside it to fill; `take_place` then puts it in.

    If the block fails before the first checkpoint, a folder that was not there before goes, and the draft in any case.

    Args:
        overwrite: let a run that stands there be replaced.
    Raises:
        InputError: something stands there, another process trains there, or the folder cannot be made.
    """
    if not _aside(folder).is_dir():  # else it is a run's, and what it holds is seen when that is back
        folder.check_free(overwrite)
    new = not folder.path.exists()
    with files.explained(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.held():
        draft = draft_of(folder)
        try:
            with files.explained(folder.path):
                if put_back(folder):
                    warn(f"{folder}: the run that stood here is back; the one that was to replace it never began")
            folder.check_free(overwrite)  # again: somebody may have begun here since
            with files.explained(folder.path):
                files.remove_leftovers(folder.path)
                draft.path.mkdir()
            _link_tokens(folder, draft)
            yield draft
        except BaseException:
            if new and not folder.steps():
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)


def draft_of(folder: RunFolder) -> RunFolder:
    """Return the draft of a run folder, which need not be there."""
    return RunFolder(folder.path / f"{files.WRITING}run")


def _link_tokens(folder: RunFolder, draft: RunFolder) -> None:
    """Let the draft have the token shards that are there: of the same text they need not be made again."""
    if not folder.tokens_path.is_dir():
        return
    with suppress(OSError):  # such as a file system without links: then they are made again
        draft.tokens_path.mkdir()
        for path in folder.tokens_path.iterdir():
            os.link(path, draft.tokens_path / path.name)


def take_place(folder: RunFolder, draft: RunFolder) -> None:
    """Put a draft's files into a run folder, and remove what they and the new run's checkpoints replace.

    Raises:
        InputError: a name cannot change hands; all that was there before is there again, or aside where even that
            cannot be done.

    Cost: one renaming a file or folder; nothing is copied.
    """
    aside, gone = _aside(folder), folder.path / f"{files.REMOVING}replaced"
    with files.explained(folder.path, safe=lambda: _set_aside(folder)):
        arriving = sorted(draft.path.iterdir())
        leaving = [*folder.replaced(), *(folder.path / path.name for path in arriving)]
        try:
            folder.checkpoints.mkdir(exist_ok=True)  # first: it tells what a crash leaves from somebody's own folder
            aside.mkdir()
            new_names = [path.name for path in arriving if not (folder.path / path.name).exists()]
            files.write_new(aside / NEW_NAMES, "".join(f"{name}\n" for name in new_names).encode())
            (aside / folder.checkpoints.name).mkdir()
            for path in dict.fromkeys(leaving):
                if path.exists():
                    os.replace(path, aside / path.relative_to(folder.path))
            for path in arriving:
                os.replace(path, folder.path / path.name)
            files.sync_folder(folder.path)
            os.replace(aside, gone)  # from here on the new run stands
        except BaseException:
            put_back(folder)
            raise
    shutil.rmtree(gone, ignore_errors=True)


def put_back(folder: RunFolder) -> bool:
    """Put what a new run was about to replace back in its place; return whether there was anything.

    Raises:
        OSError: a name cannot change; what is not back yet is still aside, and another call goes on.
    """
    aside = _aside(folder)
    if not aside.is_dir():
        return False
    with suppress(FileNotFoundError):  # then nothing has left yet
        for name in (aside / NEW_NAMES).read_text(encoding="utf-8").split("\n")[:-1]:  # but for a line cut short
            files.remove(folder.path / name)
    before = [path for path in aside.iterdir() if path.name not in (NEW_NAMES, folder.checkpoints.name)]
    if (aside / folder.checkpoints.name).is_dir():
        before += (aside / folder.checkpoints.name).iterdir()
    for path in before:
        place = folder.path / path.relative_to(aside)
        files.remove(place)
        os.replace(path, place)
    files.sync_folder(folder.path)
    shutil.rmtree(aside, ignore_errors=True)
    return bool(before)


def _aside(folder: RunFolder) -> Path:
    """Return where what is replaced lies until all names have changed hands."""
    return folder.path / f"{files.REMOVING}run"


def _set_aside(folder: RunFolder) -> str:
    """Return, for an error's text, where the old run is if it could not be put back."""
    aside = _aside(folder)
    return f"what stood there is in {aside}, and the next beginning puts it back" if aside.is_dir() else ""
