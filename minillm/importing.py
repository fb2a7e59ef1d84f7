"""From a Hugging Face folder to a run folder, which every command takes: `minillm import DIR --out RUN`.

Read next: `exporting.py`, the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minillm.checkpoint.hf.folder import open_folder
from minillm.checkpoint.native import tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.loading import Loaded, loaded_from


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was made.

    run: its folder. model_type, architecture: as the folder's config.json says. parameters: of our model.
    tokenizer: its kind; None: the folder has none. notes: what the user should know, a line each.
    """

    run: Path
    model_type: str
    architecture: str
    parameters: int
    tokenizer: str | None
    notes: tuple[str, ...] = ()


def import_folder(folder: Path, out: Path) -> Imported:
    """Make a run folder of a Hugging Face folder.

    Args:
        folder: config.json and safetensors of one of the families in `checkpoint/hf`.
        out: the run folder, which must not be there.
    Raises:
        InputError: as in `checkpoint.hf.folder.open_folder`, or a folder that cannot be written; nothing half-written
            stays behind.
    """
    run = RunFolder(out)
    run.check_free()
    source = open_folder(folder)
    loaded = loaded_from(source)
    save_run(loaded, out)
    return Imported(
        run=out,
        model_type=source.family.model_type,
        architecture=source.settings["architectures"][0],
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        tokenizer=None if loaded.tokenizer is None else loaded.tokenizer.kind,
        notes=source.notes,
    )


def save_run(loaded: Loaded, out: Path) -> None:
    """Write a model with its tokenizer as a run folder, which `minillm.load` reads again.

    It has one checkpoint and no config.toml: it was trained elsewhere, and cannot be resumed, but begun from.

    Raises:
        InputError: the folder holds something, or cannot be written.
    """
    run = RunFolder(out)
    run.check_free()
    if run.is_run():
        raise InputError(f"{out} already holds a run; choose another --out")
    with run.gone_if_unused():
        run.create()
        if loaded.tokenizer is not None:
            loaded.tokenizer.save(run.tokenizer_path)
        if loaded.origin is not None:
            loaded.origin.write(run.path)
        run.save(loaded.step, tensors_of(loaded.model), loaded.model.config, {}, {}, best=True)
