"""A fine-tuned model in use: texts in, labels and probabilities out.

    loaded = load_finetuned("runs/reviews")
    for answer in loaded.predict(text_table(["A fine film."])):
        print(answer["label"], answer["probabilities"])

Probabilities are those at the temperature that was fitted on the validation table, where the run has one.

Read next: `../cli/predict.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.config import build, read_toml, to_table
from minillm.errors import InputError
from minillm.finetune.config import FinetuneConfig, TableConfig, TaskConfig, TaskModelConfig
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.loader import SequenceLoader
from minillm.finetune.source import build_task_model
from minillm.finetune.table import Columns, Table, find_columns
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.protocol import Task
from minillm.finetune.tasks.registry import TASKS
from minillm.loading import checkpoint_name
from minillm.tokenizer.base import Tokenizer, load_tokenizer

ROWS = 64  # sequences that the model takes at once
CALIBRATION = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A fine-tuned model and what belongs to it.

    model: in evaluation mode, parameters in float32. encoder: reads texts as in training.
    temperature: divides the logits before they become probabilities. step: of the checkpoint.
    """

    model: TaskModel
    task: Task
    tokenizer: Tokenizer
    encoder: TextEncoder
    temperature: float
    step: int

    def columns(self, table: Table, config: TableConfig | None = None) -> Columns:
        """Return the columns of a table that hold what the model reads.

        Raises:
            InputError: none does.
        """
        return find_columns(table, config or TableConfig(), self.task.column_names, labelled=False)

    def predictions(self, table: Table, columns: Columns) -> Any:
        """Return what the model says about the rows of a table, as `Task.predict` does."""
        sequences = self.task.encode(table, columns, self.encoder, labelled=False)
        loader = SequenceLoader(sequences, batch_size=ROWS, pad=self.tokenizer.specials.pad)
        return self.task.predict(self.model, loader.eval_batches(ROWS), sequences)

    def predict(self, table: Table, columns: Columns | None = None) -> Iterator[dict[str, Any]]:
        """Yield the answer to each row of a table: for classes `label` and `probabilities`.

        Raises:
            InputError: an empty text, or a column that is missing.
        """
        yield from self.task.answers(self.predictions(table, columns or self.columns(table)), self.temperature)


def load_finetuned(
    folder: Path | str,
    which: str | int = "best",
    *,
    device: torch.device | str = "cpu",
    task: Mapping[str, Any] | None = None,
) -> Finetuned:
    """Return the model of a fine-tuning run.

    Args:
        folder: what `--out` named when it was started.
        which: "best", "latest" or a step that has a checkpoint.
        device: where the model goes.
        task: settings of the section [task] that are others than in the run, such as `no_answer_threshold`.
    Raises:
        InputError: no such run or checkpoint, a damaged one, one of pretraining, or a setting that does not do.

    Cost: reads `model.safetensors` once; PyTorch's random state is left as it was.
    """
    run = RunFolder(folder)
    checkpoint = run.load(checkpoint_name(which))
    path = str(checkpoint.folder / "config.json")
    if "task" not in checkpoint.model_config:
        raise InputError(f"{run} is a pretraining run and knows no labels; fine-tune it first: minillm finetune {run}")
    shape: TaskModelConfig = build(TaskModelConfig, checkpoint.model_config, source=path)
    config: FinetuneConfig = build(FinetuneConfig, read_toml(run.config_path), source=str(run.config_path))
    settings: TaskConfig = build(TaskConfig, to_table(config.task) | {**(task or {})}, source=str(run.config_path))
    asked = TASKS[shape.task.name].from_facts(settings, shape.task)
    tokenizer = load_tokenizer(run.tokenizer_path)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten: no one shall notice
        model = build_task_model(shape, asked)
    put_tensors(model, checkpoint.model_tensors(), source=checkpoint.folder / "model.safetensors")
    calibration = run.path / CALIBRATION
    return Finetuned(
        model=model.eval().to(device),
        task=asked,
        tokenizer=tokenizer,
        encoder=TextEncoder(tokenizer, shape.backbone, shape.text),
        temperature=float(read_json(calibration)["temperature"]) if calibration.exists() else 1.0,
        step=checkpoint.step,
    )
