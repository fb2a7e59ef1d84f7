r"""What the tasks on whole texts share: one text or a pair in, K numbers out, windows averaged.

Read next: `single_label.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm.data.batch import Batch
from minillm.errors import InputError
from minillm.evaluate import inference
from minillm.finetune.config import HeadConfig
from minillm.finetune.encoding import Sequences, TextEncoder, nothing_left
from minillm.finetune.heads import TextHead
from minillm.finetune.metrics import measure
from minillm.finetune.predictions import Predictions
from minillm.finetune.table import Columns, Table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.base import Task
from minillm.model.config import ModelConfig
from minillm.objectives.loss import Loss

TEXT_NAMES = ("text", "sentence", "sentence1", "premise", "question1", "question", "content", "review", "title")
PAIR_NAMES = ("pair", "text2", "text_pair", "sentence2", "hypothesis", "question2")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target", "score", "similarity", "value")


class TextTask(Task):
    """A task with K outputs a text; `minillm.finetune.tasks.base.Task` says what each method is for."""

    column_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": TEXT_NAMES,
        "pair": PAIR_NAMES,
        "label": LABEL_NAMES,
    }

    @property
    def outputs_per_text(self) -> int:
        """K."""
        return len(self.facts.labels)

    def make_head(self, config: HeadConfig, backbone: ModelConfig) -> nn.Module:
        """Return a new head for texts with K outputs."""
        return TextHead(config, backbone, self.outputs_per_text)

    def encode(self, table: Table, columns: Columns, encoder: TextEncoder, *, labelled: bool) -> Sequences:
        """Return the rows as token sequences; every window of a row has the row's target.

        Raises:
            InputError: an empty text, one of which nothing reaches the model, a target that is none, or one text a row
                where the task was learnt on two.
        """
        if self.facts.pairs and columns.pair is None:
            raise InputError(
                f"the model reads two texts at once, and {table.path} has only {columns.text}; "
                f"name the other one with data.pair_column, or give --pair beside --text"
            )
        pairs = table.texts(columns.pair) if self.facts.pairs and columns.pair is not None else None
        texts = table.texts(columns.text)
        sequences = encoder.sequences(texts, pairs)
        for row in sequences.rows[sequences.lengths == 0].tolist():
            raise nothing_left(table.place(row), texts[row])
        if not labelled:
            return sequences
        assert columns.label is not None
        return sequences.with_targets(self.targets(table, columns.label)[sequences.rows])

    @abstractmethod
    def targets(self, table: Table, column: str) -> NDArray[Any]:
        """Return the target of each row of a table, (N,) or (N, K).

        Raises:
            InputError: a value that is none; its place is named.
        """

    def predict(
        self, model: TaskModel, batches: Iterable[tuple[NDArray[np.int64], Batch]], sequences: Sequences
    ) -> Predictions:
        """Return the outputs of every row, those of its windows made one by `joined`; K numbers a sequence are held."""
        outputs = np.empty((len(sequences), self.outputs_per_text), dtype=np.float32)
        with inference(model):
            for places, batch in batches:
                outputs[places] = self.outputs(model, batch.to(model.device)).float().cpu().numpy()
        targets = sequences.targets
        begins = np.flatnonzero(np.diff(sequences.rows, prepend=-1))  # (N,) the first window of each row
        if len(begins) < len(sequences):
            outputs = self.joined(outputs, begins)
            targets = None if targets is None else targets[begins]
        return Predictions(
            task=self.name,
            logits=self.in_unit(outputs),
            targets=targets,
            label_names=self.facts.labels,
            scale=self.facts.scale,
        )

    @abstractmethod
    def joined(self, outputs: NDArray[np.float32], begins: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return one row of outputs (N, K) a text, from those of its windows (S, K); text n begins at begins[n]."""

    def in_unit(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return outputs in the unit of the table's targets."""
        return outputs

    def figures(self, predictions: Predictions) -> Mapping[str, float | None]:
        """Return the figures of `minillm.finetune.metrics`; the loss is without weights and smoothing."""
        return measure(predictions).figures()


def mean_of_windows(values: NDArray[np.float64], begins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean over the windows of each text, (N, K) for (S, K).

    >>> mean_of_windows(np.array([[1.0], [2.0], [4.0]]), np.array([0, 1]))
    array([[1.],
           [3.]])
    """
    counts = np.diff(begins, append=len(values))
    return np.add.reduceat(values, begins, axis=0) / counts[:, None]


def weighted_sum(losses: Tensor, weights: Tensor | None, there: Tensor) -> Loss:
    """Return the sum of losses where there are targets, each times its weight, and the sum of those weights.

    Args:
        losses: any shape, 0 where there is no target.
        weights: in the same shape; None: 1.
        there: in the same shape, bool.
    """
    if weights is None:
        return Loss(total=losses.sum(), count=there.sum())
    return Loss(total=(losses * weights).sum(), count=torch.where(there, weights, 0.0).sum())
