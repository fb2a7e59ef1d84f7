r"""A fine-tuned model as transformers' class for its task: BertForSequenceClassification and its like, labels by name.

transformers knows neither our temperature nor our unit of a regression: both go into the last linear layer, so that a
pipeline there says what `minillm predict` says.

    classes      z / temperature        = (W h + b) / temperature
    regression   z * scale + center     = (W h + b) * scale + center

An adapter is merged into the weights.

Read next: `checkpoint/hf/labels.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.checkpoint.hf.family import Family, Purpose
from minillm.checkpoint.hf.labels import PURPOSES, write_task
from minillm.checkpoint.hf.origin import Origin
from minillm.checkpoint.hf.tokenizer_files import tokenizer_files
from minillm.checkpoint.native import tensors_of
from minillm.config import to_table
from minillm.errors import InputError
from minillm.exporting import (
    Content,
    chosen_family,
    dropout_notes,
    dtype_of,
    model_content,
    named_tensors,
    settings_for,
)
from minillm.finetune.adapters.attach import detach, merge
from minillm.finetune.heads import TextHead, TokenHead
from minillm.finetune.predict import Finetuned, load_finetuned
from minillm.finetune.task_model import TaskModel
from minillm.tokenizer.json_file import JsonTokenizer


def merged_content(run: Path, which: str | int, *, family: str | None) -> Content:
    """Return the Hugging Face folder of a fine-tuning run; arguments and errors as in `exporting.export_run`."""
    opened, model = one_model(run, which)
    if model.config.adapter is not None:
        merge(model)
        detach(model)
    return finetuned_content(opened, model, origin=Origin.read(run), family=family)


def one_model(run: Path, which: str | int) -> tuple[Finetuned, TaskModel]:
    """Return a fine-tuning run that is opened, and its model.

    Raises:
        InputError: no such run, or several seeds of one.
    """
    opened = load_finetuned(run, which)
    if len(opened.models) > 1:
        raise InputError(f"{run} holds {len(opened.models)} seeds; export one of the runs in it")
    (model,) = opened.models
    return opened, model


def finetuned_content(
    opened: Finetuned, model: TaskModel, *, origin: Origin | None, family: str | None = None
) -> Content:
    """Return the Hugging Face folder of a fine-tuned model, which has no adapter; the rest as in `export_model`."""
    if model.config.task.name == "prompt_answer":
        return model_content(model.backbone, tokenizer=opened.tokenizer, origin=origin, family=family)
    purpose = PURPOSES[model.config.task.name]
    kind = chosen_family(model.config.backbone, family, origin)
    check_head(kind, model, purpose)
    own, notes = final_tensors(opened, model)
    notes += dropout_notes(kind, model.config.backbone)
    tensors = named_tensors(kind, model.config.backbone, purpose, own, origin)
    settings = settings_for(kind, model.config.backbone, purpose, tokenizer=opened.tokenizer, origin=origin)
    settings |= dtype_of(tensors) | head_settings(kind, model, purpose)
    control = [token for token in opened.tokenizer.specials.ids() if token != opened.tokenizer.specials.eos]
    if "last" in kind.task_heads[purpose].pooling and settings.get("pad_token_id") not in control:
        settings["pad_token_id"] = None  # else transformers would take a text's last token for padding
        notes.append("the tokenizer has no symbol for padding alone: transformers takes one text at a time")
    if model.config.text.long_texts == "windows" and purpose == "classification":
        notes.append("a text that is too long is cut: transformers has no windows whose answers are averaged")
    if model.config.text.max_length is not None and isinstance(opened.tokenizer, JsonTokenizer):
        most = f"max_length={opened.encoder.max_length}"
        notes.append(f"the tokenizer stays as it came: tell transformers to cut as here, with truncation=True, {most}")
    others = tokenizer_files(opened.tokenizer, model.config.backbone, max_length=opened.encoder.max_length)
    return Content(settings=settings, tensors=tensors, others=others, notes=tuple(notes))


def check_head(family: Family, model: TaskModel, purpose: Purpose) -> None:
    """Raise InputError where a model's head is not the one that the family has for the purpose."""
    wanted, head = family.task_heads[purpose], model.head
    assert isinstance(head, TextHead | TokenHead)
    found = []
    if isinstance(head, TextHead) and head.pooling not in wanted.pooling:
        found.append(f"head.pooling is {head.pooling}, not {' or '.join(wanted.pooling)}")
    if model.config.head.layer != wanted.layer:
        found.append(f"head.layer is {model.config.head.layer}, not {wanted.layer}")
    has_bias = head.dense.bias is not None
    if has_bias != wanted.bias:
        found.append(f"head.bias is {str(has_bias).lower()}, not {str(wanted.bias).lower()}")
    if found:
        raise InputError(
            f"this head cannot be written as that of {family.class_for(purpose)}: {'; '.join(found)}; "
            "fine-tune with its settings"
        )


def head_settings(family: Family, model: TaskModel, purpose: Purpose) -> dict[str, Any]:
    """Return what config.json says of the head and the labels."""
    facts = to_table(model.config.task) | {"labels": list(model.config.task.labels)}
    settings = write_task(facts, to_table(model.config.text))
    settings[family.dropout_key] = model.config.head.dropout
    if len(family.task_heads[purpose].pooling) > 1 and isinstance(model.head, TextHead):
        settings["classifier_pooling"] = model.head.pooling
    return settings


def final_tensors(opened: Finetuned, model: TaskModel) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the model's tensors, the last layer in the unit of the answers, and notes about what was done.

    Raises:
        InputError: a regression whose mean needs a bias, and a head without.
    """
    own, notes = tensors_of(model), []
    factor, shift = 1.0 / opened.calibration.get("temperature", 1.0), 0.0
    if factor != 1.0:
        notes.append(
            f"the temperature of {1.0 / factor:.4f} went into the classifier: its probabilities are calibrated"
        )
    task = model.config.task
    if task.name == "regression":
        factor, shift = task.scale, task.center
    if "thresholds" in opened.calibration:
        notes.append("the labels' thresholds are left out: transformers takes 0.5 for each")
    if (factor, shift) == (1.0, 0.0):
        return own, notes
    if shift and "head.dense.bias" not in own:
        raise InputError("this regression has no bias to take in the mean of its targets; fine-tune an encoder for it")
    changed = {"head.dense.weight": own["head.dense.weight"].double() * factor}
    if "head.dense.bias" in own:
        changed["head.dense.bias"] = own["head.dense.bias"].double() * factor + shift
    return {**own, **{name: tensor.to(torch.float32) for name, tensor in changed.items()}}, notes
