"""What a fine-tuned model says about a split: the material of metrics, report and calibration.

Read next: `tasks/base.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One entry per row of a table, in the table's order; K label names, N rows.

    task: single_label, multi_label or regression.
    logits: (N, K) float32; of a text in several windows, their mean as `tasks/` states it. Regression: (N, 1), in the
        unit of the targets.
    targets: single_label (N,) int64, the number of the label; multi_label (N, K) int64, 0 or 1; regression (N,)
        float32; None where the table has no labels.
    label_names: K names, sorted; regression: empty.
    texts: of the rows, the two of a pair in one tuple, where they were asked for.
    scale: regression: the unit of the loss, in that of the targets; their deviation in training, as training has it.
    """

    task: str
    logits: NDArray[np.float32]
    targets: NDArray[np.int64] | NDArray[np.float32] | None
    label_names: tuple[str, ...]
    texts: tuple[str | tuple[str, str], ...] | None = None
    scale: float = 1.0

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float32]:
        """Return (N, K): softmax for one label a row, sigmoid for several, of logits / temperature.

        Raises:
            ValueError: a regression has none.
        """
        scaled = self.logits.astype(np.float64) / temperature
        if self.task == "single_label":
            return softmax(scaled, axis=1).astype(np.float32)
        if self.task == "multi_label":
            return expit(scaled).astype(np.float32)
        raise ValueError(f"a {self.task} has no probabilities")
