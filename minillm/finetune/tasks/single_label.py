r"""One label a text: softmax over K logits.

    loss = sum_n w_n (-log p_n[y_n]) / sum_n w_n,      w_n = 1, or N / (K * rows of class y_n) (balanced)

with p = softmax(z). Label smoothing e puts (1 - e) [k = y] + e / K in the place of the label's 1. Probabilities of the
windows of a text are averaged: its logits are the logarithms of the mean.

Read next: `multi_label.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from minillm_kernels import cross_entropy
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from minillm.data.batch import IGNORED, Batch
from minillm.finetune.config import TaskConfig, TaskFacts, TaskName
from minillm.finetune.predictions import Predictions
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.labels import check_several, numbers_of, sorted_names
from minillm.finetune.tasks.texts import TextTask, mean_of_windows, weighted_sum
from minillm.objectives.loss import Loss


class SingleLabel(TextTask):
    """Which of K classes a text, or a pair of texts, belongs to."""

    name: ClassVar[TaskName] = "single_label"
    best_metric: str = "accuracy"
    figure_names: tuple[str, ...] = ("accuracy", "macro_f1", "weighted_f1", "mcc")

    def __init__(self, config: TaskConfig, facts: TaskFacts, class_weights: Tensor | None = None) -> None:
        """Take the labels' names and, where classes count differently in training, their weights (K,) float32."""
        super().__init__(config, facts)
        self.class_weights = class_weights

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task with the labels of the training table, sorted, and their weights if these are asked for."""
        assert columns.label is not None
        names = table.names(columns.label)
        labels = sorted_names(names)
        check_several(labels, table, columns.label)
        weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(numbers_of(names, labels, table, columns.label), minlength=len(labels))
            weights = torch.from_numpy(len(names) / (len(labels) * counts)).float()
        return cls(config, TaskFacts(name=cls.name, labels=labels, pairs=columns.pair is not None), weights)

    def targets(self, table: Table, column: str) -> NDArray[np.int64]:
        """Return the number of each row's label, (N,)."""
        return numbers_of(table.names(column), self.facts.labels, table, column)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the weights of its rows' classes, where there are any."""
        if self.class_weights is None or batch.targets is None:
            return batch
        weights = self.class_weights[batch.targets.clamp(min=0)]
        return dataclasses.replace(batch, weights=weights if batch.weights is None else weights * batch.weights)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed, weighted cross-entropy of logits (B, K), in nats, and the sum of the weights."""
        assert batch.targets is not None
        smoothing, targets = self.config.label_smoothing, batch.targets
        if batch.weights is None:
            total = cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="sum")
            return Loss(total=total, count=(targets != IGNORED).sum())
        losses = cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")  # (B,)
        return weighted_sum(losses, batch.weights, targets != IGNORED)

    def joined(self, outputs: NDArray[np.float32], begins: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logarithms of the windows' mean probabilities."""
        shares = mean_of_windows(softmax(outputs.astype(np.float64), axis=1), begins)
        return np.log(np.maximum(shares, np.finfo(np.float32).tiny)).astype(np.float32)

    def answers(self, predictions: Predictions, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield `label`, the likeliest, and the `probabilities` of all labels, likeliest first."""
        names = predictions.label_names
        for shares in predictions.probabilities(temperature):
            order = np.argsort(-shares, kind="stable")
            yield {"label": names[order[0]], "probabilities": {names[k]: float(shares[k]) for k in order}}
