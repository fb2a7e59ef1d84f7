"""A fine-tuned model's adapter in PEFT's format, beside the model without it: `minillm export RUN --format peft`.

    out/adapter/    adapter_config.json, adapter_model.safetensors: the adapter and the head
    out/base/       the model that they go onto, as transformers' class for the task, with the tokenizer

The adapter names its base by the absolute path, which PEFT reads from any working directory: who moves the two folders
gives PEFT the base's new place.

Read next: `finetune/adapters/peft/__init__.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from minillm.checkpoint import files
from minillm.checkpoint.hf.family import Purpose
from minillm.checkpoint.hf.folder import SHARD_BYTES, fill_folder
from minillm.checkpoint.hf.labels import PURPOSES
from minillm.checkpoint.hf.origin import Origin
from minillm.checkpoint.hf.replacing import ADAPTER_FOLDER, BASE_FOLDER, adapter_obstacle, check_free
from minillm.errors import InputError
from minillm.exporting import Exported, chosen_family
from minillm.exporting_tasks import check_head, final_tensors, finetuned_content, one_model
from minillm.finetune.adapters.attach import detach
from minillm.finetune.adapters.peft.write import fill_adapter, to_peft
from minillm.finetune.task_model import ADAPTER, TaskModel


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
    check_free(out, overwrite, adapter_obstacle)
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
    settings, tensors = to_peft(model, ADAPTER, kind, purpose)
    settings |= {"base_model_name_or_path": str((out / BASE_FOLDER).absolute())}
    content = finetuned_content(opened, _without_adapter(model), origin=origin, family=kind.model_type)
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(out) as draft:
        for name in (ADAPTER_FOLDER, BASE_FOLDER):
            with files.explained(out / name):
                (draft / name).mkdir()
        fill_adapter(draft / ADAPTER_FOLDER, settings, tensors, named=out / ADAPTER_FOLDER)
        parts = (content.settings, content.tensors, content.others)
        fill_folder(draft / BASE_FOLDER, *parts, shard_bytes=shard_bytes, named=out / BASE_FOLDER)
    return dataclasses.replace(content.exported(out), notes=(*notes, *content.notes))


def _without_adapter(model: TaskModel) -> TaskModel:
    """Return the model with its adapter taken off, and a regression's unit for the head that it now has."""
    detach(model)
    task = model.config.task
    if task.name == "regression":  # the head has the unit in it already
        task = dataclasses.replace(task, scale=1.0, center=0.0)
    model.config = dataclasses.replace(model.config, adapter=None, task=task)
    return model
