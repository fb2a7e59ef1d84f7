"""A fine-tuned model's adapter in PEFT's format, beside the model without it: `minillm export RUN --format peft`.

    out/adapter/    adapter_config.json, adapter_model.safetensors: the adapter and the head
    out/base/       the model that they go onto, as transformers' class for the task, with the tokenizer

Read next: `finetune/adapters/peft/sites.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from minillm.checkpoint import files
from minillm.checkpoint.hf.family import Purpose
from minillm.checkpoint.hf.folder import SHARD_BYTES
from minillm.checkpoint.hf.labels import PURPOSES
from minillm.checkpoint.hf.origin import Origin
from minillm.errors import InputError
from minillm.exporting import Exported, chosen_family
from minillm.exporting_tasks import check_head, final_tensors, one_model, write_finetuned
from minillm.finetune.adapters.attach import detach
from minillm.finetune.adapters.peft import save_peft
from minillm.finetune.task_model import ADAPTER, TaskModel

FOLDERS = ("adapter", "base")


def export_adapter(
    run: Path,
    out: Path,
    *,
    which: str | int = "best",
    family: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the adapter of a fine-tuning run and the model that it goes onto; arguments as in `exporting.export_run`.

    Raises:
        InputError: a run without an adapter, one that PEFT has not or that does something else there, no family with
            such a model or head, or a folder that cannot be written; nothing half-written stays behind.
    """
    _check_free(out, overwrite)
    opened, model = one_model(run, which)
    if model.config.adapter is None:
        raise InputError(f"{run} was fine-tuned without an adapter; export it with --format hf")
    origin = Origin.read(run)
    kind = chosen_family(model.config.backbone, family, origin)
    purpose: Purpose = "causal_lm"
    notes: list[str] = []
    if model.config.task.name != "prompt_answer":
        purpose = PURPOSES[model.config.task.name]
        check_head(kind, model, purpose)
        own, notes = final_tensors(opened, model)
        with torch.no_grad():  # the head answers as `minillm predict` does, and goes with the adapter
            for name, parameter in model.head.named_parameters(prefix="head"):
                parameter.copy_(own[name])
        opened = dataclasses.replace(opened, calibration={})
    try:
        with files.explained(out):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
        save_peft(model, out / "adapter", family=kind, purpose=purpose, name=ADAPTER, base=str(out / "base"))
        bare = _without_adapter(model)
        written = write_finetuned(
            opened, bare, out / "base", origin=origin, family=kind.model_type, shard_bytes=shard_bytes
        )
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return dataclasses.replace(written, folder=out, notes=tuple(notes))


def _without_adapter(model: TaskModel) -> TaskModel:
    """Return the model with its adapter taken off, and a regression's unit for the head that it now has."""
    detach(model)
    task = model.config.task
    if task.name == "regression":  # the head has the unit in it already
        task = dataclasses.replace(task, scale=1.0, center=0.0)
    model.config = dataclasses.replace(model.config, adapter=None, task=task)
    return model


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise InputError where something stands that an export must not replace."""
    with files.explained(out):
        there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    if there and there != set(FOLDERS):
        raise InputError(f"{out} is not empty and holds no exported adapter; choose another --out")
    if there and not overwrite:
        raise InputError(f"{out} already holds an adapter; choose another --out or add --overwrite")
