"""A new run takes its place only when it is ready: until then whatever stands there, an old run too, stays as it is.

    RUN/.writing-run/    config.toml, tokenizer/, tokens/ ... of the new run, while they are made
    RUN/.removing-run/   what they replace, while the names change hands; it goes, or comes back if one cannot change

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


@contextmanager
def beginning(folder: RunFolder, overwrite: bool = False) -> Iterator[RunFolder]:
    """Make and hold the folder of a new run, and yield a draft beside it to fill; `take_place` then puts it in.

    If the block fails before the first checkpoint, a folder that was not there before goes, and the draft in any case.

    Args:
        overwrite: let a run that stands there be replaced.
    Raises:
        InputError: something stands there, another process trains there, or the folder cannot be made.
    """
    folder.check_free(overwrite)
    new = not folder.path.exists()
    with files.explained(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.held():
        draft = draft_of(folder)
        try:
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
    with suppress(OSError):  # such as a file system without links: then they are made again
        draft.tokens_path.mkdir()
        for path in folder.tokens_path.iterdir():
            os.link(path, draft.tokens_path / path.name)


def take_place(folder: RunFolder, draft: RunFolder) -> None:
    """Put a draft's files into a run folder, and remove what they and the new run's checkpoints replace.

    Raises:
        InputError: a name cannot change hands; all that was there before is there again.

    Cost: one renaming a file or folder; nothing is copied.
    """
    aside = folder.path / f"{files.REMOVING}run"
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        os.replace(source, target)
        moved.append((source, target))

    with files.explained(folder.path):
        arriving = sorted(draft.path.iterdir())
        leaving = [*folder.replaced(), *(folder.path / path.name for path in arriving)]
        try:
            folder.checkpoints.mkdir(exist_ok=True)  # first: it tells what a crash leaves from somebody's own folder
            aside.mkdir()
            for number, path in enumerate(dict.fromkeys(leaving)):
                if path.exists():
                    move(path, aside / str(number))
            for path in arriving:
                move(path, folder.path / path.name)
            files.sync_folder(folder.path)
        except OSError:
            for source, target in reversed(moved):
                os.replace(target, source)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
