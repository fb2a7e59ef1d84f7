"""manifest.json: which files a checkpoint has, their sizes and SHA-256; damage is found before anything is used.

    {"format": 1,
     "facts": {...},                                       what the writer says of the checkpoint, such as its step
     "files": {"model.safetensors": {"bytes": 4096, "sha256": "9f86..."}, ...},
     "sha256": "60303a..."}                                of the three above, so that the manifest itself is covered

It is written last, from the files as the disk gives them back. Names in it are plain names of files in its own folder:
one that could lead elsewhere is refused.

Read next: `run_folder.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minillm.checkpoint import files
from minillm.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no separator, no leading dot: it cannot leave the folder


class Damaged(InputError):
    """A file of a checkpoint is not what its manifest says; the text names it."""


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Raises:
        OSError: it cannot be read.

    Cost: reads it once; 1 to 2 GB/s on a CPU with SHA instructions.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of all files that are in a folder, each flushed to the disk first and read back from it.

    Args:
        folder: with files that have plain names, and no folders.
        facts: what JSON can hold.
    Raises:
        OSError: a file cannot be read or the manifest not be written.
    """
    listed = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            files.sync_file(path)
            files.forget_cached(path)
            listed[path.name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    table = {"format": FORMAT, "facts": dict(facts), "files": listed}
    text = json.dumps(table | {"sha256": _digest(table)}, indent=1) + "\n"
    files.write_new(folder / MANIFEST, text.encode())


def renew_manifest(folder: Path) -> None:
    """Write the manifest of a checkpoint anew, for whoever changed a file of it on purpose; its facts stay.

    Raises:
        InputError: there was no sound manifest before, or it cannot be written.
    """
    facts = read_manifest(folder)["facts"]
    with files.explained(folder / MANIFEST):
        write_manifest(folder, facts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder: "facts" and "files".

    Raises:
        Damaged: it is missing or not as it was written, or it has a name that is no plain one.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        table = json.loads(content)
        said = table.pop("sha256")
        # the text as it would be written again: also a change that JSON does not mind, such as of a space, is seen
        if (json.dumps(table | {"sha256": said}, indent=1) + "\n").encode() != content or said != _digest(table):
            raise ValueError("its own SHA-256 does not fit")
        if table["format"] != FORMAT:
            raise InputError(f"{path} is of format {table['format']}, this version reads {FORMAT}")
        for name, entry in table["files"].items():
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a plain name of a file")
            if not (type(entry["bytes"]) is int and type(entry["sha256"]) is str):
                raise ValueError(f"the entry of {name} is none")
        if not isinstance(table["facts"], dict):
            raise ValueError("its facts are no table")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing; the checkpoint is not whole") from error
    except OSError as error:
        raise Damaged(f"cannot read {path}: {files.reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error
    return table


def check_files(folder: Path, listed: Mapping[str, Mapping[str, Any]], names: Iterable[str] | None = None) -> None:
    """Raise Damaged unless files are as a manifest says: first their sizes, which costs nothing, then their SHA-256.

    A file of tensors that is not listed is damage too, where all files are looked at: an optimiser that is cut into
    shards is read from all that lie there.

    Args:
        folder: of the checkpoint.
        listed: the manifest's "files".
        names: those to look at; None: all that are listed.

    Cost: reads each of them once.
    """
    wanted = list(listed) if names is None else list(names)
    if names is None:
        strangers = sorted(path for path in folder.glob("*.safetensors") if path.name not in listed)
        if strangers:
            raise Damaged(f"{strangers[0]} is no file of this checkpoint: {MANIFEST} does not list it")
    for check in (_check_size, _check_digest):
        for name in wanted:
            path = folder / name
            if name not in listed:
                raise Damaged(f"{path} is missing; {MANIFEST} does not list it")
            try:
                check(path, listed[name])
            except FileNotFoundError as error:
                raise Damaged(f"{path} is missing; the checkpoint is not whole") from error
            except OSError as error:
                raise Damaged(f"cannot read {path}: {files.reason(error)}") from error


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise Damaged(f"{path} is damaged: it has {size:,} bytes, {MANIFEST} says {entry['bytes']:,}")


def _check_digest(path: Path, entry: Mapping[str, Any]) -> None:
    if digest_of(path) != entry["sha256"]:
        raise Damaged(f"{path} is damaged: its SHA-256 is not what {MANIFEST} says")


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
