"""What a fine-tuning task must have, and what all do alike: trainer, evaluation, `predict` and report know only this.

    table -> encode -> Sequences -> loader -> Batch -> prepare, step -> Loss                         training
    table -> encode -> Sequences -> batches -> predict -> Outcome -> figures, answers                evaluation, predict

A task is made in one of two ways: from the training table (`learn`, which finds label names and such) or, by its class,
from what a checkpoint keeps (`TaskFacts`). Both give equal tasks.

Read next: `../task_model.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm.data.batch import Batch
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskName
from minillm.finetune.encoding import Sequences, TextEncoder
from minillm.finetune.table import Columns, Table
from minillm.finetune.task_model import TaskModel
from minillm.model.config import ModelConfig
from minillm.objectives.loss import Loss


class Task(ABC):
    """One kind of labelled text. It is an `Objective` for the trainer, with its two halves apart.

    name: as `task.name` in the settings.
    needs_output_weight: whether the backbone keeps its language-model head; else it is dropped, so that no parameter
        goes without a gradient.
    column_names: role ("text", "pair", "label") -> names that a column is found by, in small letters.
    readers: suffix -> reader of a kind of file that only this task has, beside those of `table.py`.
    figure_names: what `figures` gives beside "loss"; metrics.csv has a column for each.
    best_metric: the figure that the best checkpoint goes by when nothing is said; all but "loss" are better higher.
    config: the section [task]. facts: what a checkpoint must keep to make an equal task.
    """

    name: ClassVar[TaskName]
    needs_output_weight: ClassVar[bool] = False
    column_names: ClassVar[Mapping[str, tuple[str, ...]]]
    readers: ClassVar[Mapping[str, Callable[[Path], Table]]] = {}
    figure_names: tuple[str, ...]
    best_metric: str

    def __init__(self, config: TaskConfig, facts: TaskFacts) -> None:
        self.config, self.facts = config, facts

    @classmethod
    @abstractmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task that the training table poses: its labels are found, sorted and numbered.

        Raises:
            InputError: the table poses none, such as one with a single class.
        """

    @abstractmethod
    def make_head(self, config: HeadConfig, backbone: ModelConfig) -> nn.Module:
        """Return a new `heads.Head`, its weights drawn from PyTorch's default generator."""

    @abstractmethod
    def encode(self, table: Table, columns: Columns, encoder: TextEncoder, *, labelled: bool) -> Sequences:
        """Return the rows as token sequences, one or several (windows) a row, in order.

        Args:
            labelled: read targets too; else the table needs no label column.
        Raises:
            InputError: an empty text, an unknown label, ...; the text names the file and the line.
        """

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as the trainer counts and cuts it: with `targets`, and `weights` where they differ."""
        return batch

    def outputs(self, model: TaskModel, batch: Batch) -> Tensor:
        """Return what the loss is taken of, such as logits (B, K) float32, with gradient."""
        return model(batch.tokens, **batch.model_inputs())

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the loss of `outputs` on the targets of the same (micro-)batch."""

    def step(self, model: TaskModel, batch: Batch) -> Loss:
        """Return the loss of a (micro-)batch; R-Drop and others take its two halves apart."""
        return self.loss(self.outputs(model, batch), batch)

    @abstractmethod
    def predict(
        self, model: TaskModel, batches: Iterable[tuple[NDArray[np.int64], Batch]], sequences: Sequences
    ) -> Any:
        """Return what the model says about `sequences`, an entry a row of the table: `Predictions`, or the task's own.

        Args:
            model: its mode is put back afterwards; evaluation mode, no gradients.
            batches: (numbers of sequences, batch) in any order, each sequence once, such as
                `SequenceLoader.eval_batches(rows)`; each is moved to the model's device here.

        Memory: bounded by one batch of hidden states and what is returned.
        """

    @abstractmethod
    def figures(self, predictions: Any) -> Mapping[str, float | None]:
        """Return the figures of a labelled split over all of its rows; None where a formula divides by zero."""

    @abstractmethod
    def answers(self, predictions: Any, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield one table a row, as `minillm predict` prints it: for classes `label` and `probabilities`."""
