"""An adapter as a folder: its weights, the task's own beside them, and what it was attached to.

    adapter.safetensors   blocks.0.attention.q.adapter.A.weight ...   of the adapter, by places of the bare backbone
                          task.head.weight ...                        what the model has for its task, pooler included
    adapter.json          format, name, the section [adapter], the section [model] of the backbone

A head that is not in the file would be a random one after loading, so it always is.

Read next: `../scope.py`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm.checkpoint import files
from minillm.checkpoint.native import check_fit, put_by_name, read_tensors, write_tensors
from minillm.checkpoint.run_folder import read_json
from minillm.config import build, to_table
from minillm.errors import InputError
from minillm.finetune.adapters.attach import adapter_tensors, attach, attached, task_tensors
from minillm.finetune.adapters.config import AdapterConfig
from minillm.finetune.adapters.places import backbone_of
from minillm.model.config import ModelConfig

FORMAT = "minillm-adapter-1"
TENSORS, CARD = "adapter.safetensors", "adapter.json"
TASK = "task."  # prefix of the tensors that the model has for its task
FREE = ("dropout", "attention_dropout", "init_std")  # settings of a model that an adapter does not depend on


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What adapter.json says of an adapter, beside its format."""

    name: str
    adapter: AdapterConfig
    model: ModelConfig


def save(model: nn.Module, folder: Path | str, *, name: str = "adapter") -> None:
    """Write an attached adapter and the task's own weights as a folder, whole or not at all.

    Args:
        model: merged or not: the adapter's own weights are written.
        folder: made anew; one that holds an adapter, and nothing else, is replaced.
        name: of the adapter.
    Raises:
        InputError: something else stands there, or it cannot be written.
        ValueError: no adapter of that name.
    """
    folder = Path(folder)
    tensors = adapter_tensors(model, name) | {f"{TASK}{n}": p for n, p in task_tensors(model).items()}
    card = AdapterCard(name=name, adapter=attached(model)[name], model=backbone_of(model).config)
    if folder.exists() and not (folder / CARD).is_file():
        raise InputError(f"{folder} is not a folder with an adapter, and would be replaced; choose another place")
    if folder.exists() and (other := files.other_entry(folder, {CARD, TENSORS}.__contains__)):
        raise InputError(f"{folder} has {other} beside an adapter, and would be replaced; choose another place")
    with files.explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(folder) as draft:
        write_tensors(draft / TENSORS, tensors, named=folder / TENSORS)
        with files.explained(folder / CARD):
            text = json.dumps({"format": FORMAT} | to_table(card), indent=1)
            (draft / CARD).write_text(text + "\n", encoding="utf-8")


def load(model: nn.Module, folder: Path | str, *, name: str | None = None, task: bool = True) -> str:
    """Attach an adapter from a folder to a model, and give the task's own weights the values they had beside it.

    Args:
        model: of the architecture that the adapter was saved with, and with the same modules for its task.
        folder: as `save` wrote it.
        name: to attach it under; None: the name that it was saved with.
        task: False: leave the model's own head as it is, whatever the folder has for one.
    Returns:
        the name under which it is attached; it alone is active.
    Raises:
        InputError: no such folder, a damaged one, or an adapter of another architecture or task; the first setting or
            tensor that differs is named, and the model is then unchanged.
        ValueError: the name is taken, or adapters are merged.

    Cost: reads the file once; PyTorch's random state is left as it was.
    """
    folder = Path(folder)
    card = read_card(folder)
    _check_model(folder / CARD, card.model, backbone_of(model).config)
    tensors = read_tensors(folder / TENSORS)
    came = {key.removeprefix(TASK): tensors.pop(key) for key in list(tensors) if key.startswith(TASK)}
    if task:
        check_fit(task_tensors(model), came, source=folder / TENSORS)
    name = card.name if name is None else name
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten: no one shall notice
        attach(model, card.adapter, name=name, tensors=tensors, source=folder / TENSORS)
    if task:
        put_by_name(task_tensors(model), came, source=folder / TENSORS)
    return name


def read_card(folder: Path) -> AdapterCard:
    """Return what a folder says of its adapter.

    Raises:
        InputError: there is none, or it is damaged or of another format.
    """
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{folder} is not a folder with an adapter: it has no {CARD}")
    table: dict[str, Any] = read_json(path)
    if (format := table.pop("format", None)) != FORMAT:
        raise InputError(f"{path} is of the format {format!r}, and this version reads {FORMAT}")
    return build(AdapterCard, table, source=str(path))


def _check_model(path: Path, saved: ModelConfig, own: ModelConfig) -> None:
    """Raise InputError unless an adapter saved with one model fits another; tensors alone do not tell."""
    for field in dataclasses.fields(saved):
        came, asked = getattr(saved, field.name), getattr(own, field.name)
        if field.name not in FREE and came != asked:
            raise InputError(
                f"{path} is of another architecture: model.{field.name} is {came} in it, this model has {asked}; "
                f"load it onto the model that it was trained on"
            )
