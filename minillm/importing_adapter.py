"""From a folder of PEFT's and the model that it is for to a run: `minillm import ADAPTER --base DIR --out RUN`.

A model with a task's head keeps the adapter beside its weights, as after fine-tuning here. A language model takes it
into them: the runs of language models have no adapters.

Read next: `finetune/adapters/peft/read.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minillm.checkpoint.hf.family import TASK_PURPOSES
from minillm.checkpoint.hf.folder import open_folder
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.errors import InputError
from minillm.finetune.adapters.attach import detach, merge
from minillm.finetune.adapters.peft.read import load_peft, missing_head
from minillm.finetune.adapters.peft.write import CONFIG, TASK_TYPES
from minillm.finetune.predict import finetuned_from
from minillm.finetune.task_model import ADAPTER
from minillm.importing import Imported, save_run, save_task_run
from minillm.loading import loaded_from


def import_adapter(folder: Path, base: Path, out: Path) -> Imported:
    """Make a run of an adapter and its base.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base: a Hugging Face folder of the class that the adapter was trained on, with the head that it had.
        out: the run folder, which must not be there.
    Raises:
        InputError: a folder that is not what it should be, an adapter that does not fit or cannot be merged, or a
            folder that cannot be written; nothing half-written stays behind.
    """
    run = RunFolder(out)
    run.check_free()
    source = open_folder(base)
    facts: dict[str, Any] = {"family": source.family, "purpose": source.purpose}
    notes = []
    _check_task(folder, base, source.settings["architectures"][0], TASK_TYPES[source.purpose])
    if source.purpose in TASK_PURPOSES:
        opened = finetuned_from(source)
        (model,) = opened.models
        tokenizer = opened.tokenizer
        config = load_peft(model, folder, name=ADAPTER, has_head=True, **facts)
        if missing := missing_head(folder, source.family, source.purpose):
            notes.append(f"{folder} has no {', '.join(missing)}: taken from {base}")
        model.config = dataclasses.replace(model.config, adapter=config)
        save_task_run(source, model, tokenizer, out)
    else:
        loaded = loaded_from(source)
        model, tokenizer = loaded.model, loaded.tokenizer
        load_peft(model, folder, **facts)
        merge(model)
        detach(model)
        save_run(loaded, out)
    return Imported.of(source, out, model, tokenizer, notes)


def _check_task(folder: Path, base: Path, architecture: str, wanted: str | None) -> None:
    """Raise InputError where an adapter was trained for another task than its base has a head for."""
    if not (folder / CONFIG).is_file():
        return  # `load_peft` says so
    came = read_json(folder / CONFIG).get("task_type")
    if came is not None and wanted is not None and came != wanted:
        raise InputError(
            f"{folder} was trained for {came}, and {base} is a {architecture}; give as --base a folder of the class "
            "that it was trained on, with its head: model.save_pretrained(...) in transformers"
        )
