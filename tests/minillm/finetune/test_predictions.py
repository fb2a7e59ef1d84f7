"""Probabilities of logits that are far from 0."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.finetune.predictions import Predictions


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_small_probabilities_keep_their_digits(task):
    """p(z) is exp(z), where that is small, for a label by itself and for a class beside one at 0; nothing overflows."""
    z = np.array([-30.0, -80.0, -1e4], np.float32)
    logits = np.stack([z, np.zeros_like(z)], axis=1)
    said = Predictions(task=task, logits=logits, targets=None, label_names=("a", "b"))
    assert said.probabilities()[:, 0] == pytest.approx(np.exp(z.astype(np.float64)), rel=1e-6, abs=0.0)
