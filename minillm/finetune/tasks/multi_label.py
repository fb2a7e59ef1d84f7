r"""Any number of K labels a text: K questions with yes or no, a sigmoid each.

    loss = sum_nk w_nk (-log p_nk[y_nk]) / sum_nk w_nk      w = 1, or N / (2 * rows with that answer to question k)

The targets are (N, K), 0 or 1, so the loss is a mean over N K decisions. Label smoothing e moves both answers by e / 2
to the middle. In .csv and .tsv the labels of a cell stand between `task.label_separator`, in .jsonl and .parquet they
are a list; an empty one says that no label is there. Probabilities of the windows of a text are averaged.

Read next: `regression.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import IGNORED, Batch
from minillm.errors import InputError
from minillm.finetune.config import TaskConfig, TaskFacts, TaskName
from minillm.finetune.metrics import decide
from minillm.finetune.predictions import Predictions
from minillm.finetune.table import Columns, Table, name_of
from minillm.finetune.tasks.labels import sorted_names, unseen
from minillm.finetune.tasks.texts import TextTask, mean_of_windows, weighted_sum
from minillm.objectives.loss import Loss

THRESHOLD = 0.5  # the probability from which on a label is said to be there when nothing else was learnt


class MultiLabel(TextTask):
    """Which of K labels a text, or a pair of texts, has."""

    name: ClassVar[TaskName] = "multi_label"
    best_metric: str = "macro_f1"
    figure_names: tuple[str, ...] = ("accuracy", "micro_f1", "macro_f1", "weighted_f1", "mcc")

    def __init__(self, config: TaskConfig, facts: TaskFacts, answer_weights: Tensor | None = None) -> None:
        """Take the labels' names and, where answers count differently in training, (2, K) float32: of no and of yes."""
        super().__init__(config, facts)
        self.answer_weights = answer_weights

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task with the labels of the training table, sorted, and their weights if these are asked for."""
        assert columns.label is not None
        sets = label_sets(table, columns.label, config.label_separator)
        labels = sorted_names(name for names in sets for name in names)
        if not labels:
            raise InputError(f"{table.path} names no label in column {columns.label}; give rows with labels")
        task = cls(config, TaskFacts(name=cls.name, labels=labels, pairs=columns.pair is not None))
        if config.class_weights == "balanced":
            yes = task.targets(table, columns.label).sum(axis=0)  # (K,)
            counts = np.stack([len(table) - yes, yes])
            weights = len(table) / (2 * np.maximum(counts, 1))  # an answer that is never given has no row to weigh
            task.answer_weights = torch.from_numpy(weights).float()
        return task

    def targets(self, table: Table, column: str) -> NDArray[np.int64]:
        """Return 1 where a row has a label, else 0, (N, K)."""
        sets = label_sets(table, column, self.config.label_separator)
        number = {label: place for place, label in enumerate(self.facts.labels)}
        unknown = [(row, name) for row, names in enumerate(sets) for name in names if name not in number]
        if unknown:
            raise unseen(table, [row for row, _ in unknown], unknown[0][1], self.facts.labels, column)
        targets = np.zeros((len(sets), len(number)), dtype=np.int64)
        for row, names in enumerate(sets):
            targets[row, [number[name] for name in names]] = 1
        return targets

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the weights of its answers, where there are any."""
        if self.answer_weights is None or batch.targets is None:
            return batch
        weights = self.answer_weights.gather(0, batch.targets.clamp(min=0))  # (B, K)
        return dataclasses.replace(batch, weights=weights if batch.weights is None else weights * batch.weights)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed, weighted cross-entropy of B K decisions, in nats, and the sum of the weights."""
        assert batch.targets is not None
        there = batch.targets != IGNORED  # (B, K)
        smoothing = self.config.label_smoothing
        wanted = batch.targets.float() * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").where(there, 0.0)
        return weighted_sum(losses, batch.weights, there)

    def joined(self, outputs: NDArray[np.float32], begins: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the log odds of the windows' mean probabilities."""
        shares = mean_of_windows(expit(outputs.astype(np.float64)), begins)
        least = np.finfo(np.float32).eps
        return logit(np.clip(shares, least, 1 - least)).astype(np.float32)

    def answers(
        self, predictions: Predictions, temperature: float = 1.0, thresholds: Sequence[float] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield `label`, the list of those that are there, and the `probabilities` of all labels, likeliest first.

        Args:
            thresholds: of each label at that temperature; None: 0.5 for all.
        """
        names = predictions.label_names
        shares_of_rows = predictions.probabilities(temperature)
        there = decide(shares_of_rows, tuple(thresholds or [THRESHOLD] * len(names)))  # as in the report's figures
        for shares, decided in zip(shares_of_rows, there, strict=True):
            order = np.argsort(-shares, kind="stable")
            said = [names[k] for k in order if decided[k]]
            yield {"label": said, "probabilities": {names[k]: float(shares[k]) for k in order}}


def label_sets(table: Table, column: str, separator: str) -> list[list[str]]:
    """Return the labels of each row.

    Raises:
        InputError: a value that is neither text nor a list of names; its place is named.
    """
    sets: list[list[str]] = []
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, str):
            names = value.split(separator) if value.strip() else []
        else:
            names = value if isinstance(value, list) else [value]
        found = [name_of(name) for name in names]
        if None in found:
            raise InputError(f"{table.place(row)}: {column} takes names of labels, got {value!r}")
        sets.append([name for name in found if name is not None])
    return sets
