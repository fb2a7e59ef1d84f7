r"""A number a text. The head gives z = (y - center) / scale, with mean and deviation of the training targets.

    loss = sum_n (z_n - (y_n - center) / scale)^2 / N       so 1 is what always saying the mean would cost

All figures, and `predict`, are in the unit of the targets. Windows of a text are averaged.

Read next: `../run.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from minillm.data.batch import Batch, has_target
from minillm.errors import InputError
from minillm.finetune.config import TaskConfig, TaskFacts, TaskName
from minillm.finetune.predictions import Predictions
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.texts import TextTask, mean_of_windows, weighted_sum
from minillm.objectives.loss import Loss

LARGEST = 1e18  # of a target: its square, and sums of such, are finite in float32
FINE = 100  # steps of float32 in the targets' deviation, at least; with fewer, what is to be learnt is rounded away


class Regression(TextTask):
    """Which number belongs to a text, or to a pair of texts."""

    name: ClassVar[TaskName] = "regression"
    best_metric: str = "pearson"
    figure_names: tuple[str, ...] = ("pearson", "spearman", "mse", "mae")

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task with mean and deviation of the training table's targets.

        Raises:
            InputError: all targets are one number, or so near to each other that float32 rounds them to a few, or a
                setting that only classes have.
        """
        assert columns.label is not None
        if config.class_weights != "none" or config.label_smoothing:
            raise InputError("task.class_weights and task.label_smoothing are for labels; leave them out in regression")
        exact = _numbers(table, columns.label)
        if exact.min() == exact.max():
            raise InputError(f"{table.path}: {columns.label} is {exact[0]:g} in all rows: nothing to learn")
        values = exact.astype(np.float32).astype(np.float64)  # as the loss has them
        if values.std() <= FINE * np.finfo(np.float32).eps * np.abs(values).max():
            raise InputError(
                f"{table.path}: {columns.label} is {exact.mean():.15g} give or take {exact.std():.3g}, and float32 "
                "rounds such differences away; subtract a number near the mean from all, or use a smaller unit"
            )
        facts = TaskFacts(
            name=cls.name, pairs=columns.pair is not None, center=float(values.mean()), scale=float(values.std())
        )
        return cls(config, facts)

    @property
    def outputs_per_text(self) -> int:
        """1."""
        return 1

    def targets(self, table: Table, column: str) -> NDArray[np.float32]:
        """Return the number of each row, (N,)."""
        return _numbers(table, column).astype(np.float32)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed, weighted squared error, in units of the targets' variance, and the sum of the weights."""
        assert batch.targets is not None
        there = has_target(batch.targets)  # (B,)
        wanted = (batch.targets.where(there, self.facts.center) - self.facts.center) / self.facts.scale
        losses = (outputs[:, 0] - wanted).square().where(there, 0.0)
        return weighted_sum(losses, batch.weights, there)

    def joined(self, outputs: NDArray[np.float32], begins: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the windows' means."""
        return mean_of_windows(outputs.astype(np.float64), begins).astype(np.float32)

    def in_unit(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return outputs times the targets' deviation, plus their mean."""
        return outputs * np.float32(self.facts.scale) + np.float32(self.facts.center)

    def answers(self, predictions: Predictions, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield the `value` of each row."""
        for (value,) in predictions.logits:
            yield {"value": float(value)}


def _numbers(table: Table, column: str) -> NDArray[np.float64]:
    """Return the number of each row, (N,), as the table has it.

    Raises:
        InputError: a value that is none, or a number too large; its place is named.
    """
    numbers = np.empty(len(table), dtype=np.float64)
    for row, value in enumerate(table.columns[column]):
        try:
            number = float(value) if isinstance(value, str | int | float) else np.nan
        except (ValueError, OverflowError):
            number = np.nan
        if not np.isfinite(number):
            raise InputError(f"{table.place(row)}: {column} takes a number, got {value!r}")
        if abs(number) > LARGEST:
            raise InputError(
                f"{table.place(row)}: {column} is {value!r}; numbers go up to {LARGEST:g}, use a larger unit"
            )
        numbers[row] = number
    return numbers
