"""From a Hugging Face folder to a run folder, which every command takes: `minillm import DIR --out RUN`.

Read next: `importing_adapter.py`, and `exporting.py`, the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from minillm.checkpoint.beginning import beginning, take_place
from minillm.checkpoint.files import write_text
from minillm.checkpoint.hf.family import TASK_PURPOSES
from minillm.checkpoint.hf.folder import CONFIG, ModelFolder, open_folder
from minillm.checkpoint.hf.origin import Origin
from minillm.checkpoint.native import tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, to_table, toml_text
from minillm.errors import InputError
from minillm.loading import Loaded, loaded_from
from minillm.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from minillm.finetune.task_model import TaskModel

ADAPTER_CONFIG = "adapter_config.json"  # what a folder of PEFT's has


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

    @classmethod
    def of(
        cls, source: ModelFolder, run: Path, model: nn.Module, tokenizer: Tokenizer | None, notes: Sequence[str] = ()
    ) -> Imported:
        """Return what there is to say of a run that was made of a folder; `notes` come after the folder's."""
        return cls(
            run=run,
            model_type=source.family.model_type,
            architecture=source.settings["architectures"][0],
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            tokenizer=None if tokenizer is None else tokenizer.kind,
            notes=(*source.notes, *notes),
        )


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
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is an adapter of PEFT's; say with --base which model it is for")
    source = open_folder(folder)
    if source.purpose in TASK_PURPOSES:
        from minillm.finetune.predict import finetuned_from

        opened = finetuned_from(source)
        (model,), tokenizer = opened.models, opened.tokenizer
        save_task_run(source, model, tokenizer, out)
    else:
        loaded = loaded_from(source)
        model, tokenizer = loaded.model, loaded.tokenizer
        save_run(loaded, out)
    return Imported.of(source, out, model, tokenizer)


def save_task_run(source: ModelFolder, model: TaskModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a model with a task's head, and perhaps an adapter, as a run that `minillm predict` takes."""
    from minillm.finetune.config import FinetuneConfig

    table = {"init": str(source.path), "task": {"name": model.config.task.name}, "head": to_table(model.config.head)}
    if model.config.adapter is not None:
        table["adapter"] = to_table(model.config.adapter)
    config: FinetuneConfig = build(FinetuneConfig, table | {"train": {"compute_dtype": "float32"}})
    run = RunFolder(out)
    with beginning(run) as draft:
        tokenizer.save(draft.tokenizer_path)
        Origin.of(source).write(draft.path)
        write_text(draft.config_path, toml_text(config))
        take_place(run, draft)
        run.save(0, tensors_of(model), model.config, {}, {}, best=True)


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
    with beginning(run) as draft:
        if loaded.tokenizer is not None:
            loaded.tokenizer.save(draft.tokenizer_path)
        if loaded.origin is not None:
            loaded.origin.write(draft.path)
        take_place(run, draft)
        run.save(loaded.step, tensors_of(loaded.model), loaded.model.config, {}, {}, best=True)
