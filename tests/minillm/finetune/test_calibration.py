"""ECE against closed forms, and the temperature against a dense search and a known truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minillm.finetune.calibration import (
    BINS,
    Temperature,
    calibrated,
    fit_temperature,
    reliability,
)
from minillm.finetune.metrics import losses, measure
from minillm.finetune.predictions import Predictions


def said(shares, targets, task="single_label") -> Predictions:
    """Return predictions with these probabilities, (N, K); of two classes the first one's are enough."""
    p = np.array(shares, dtype=np.float64)
    if p.ndim == 1:
        p = np.stack([p, 1 - p], axis=1)
    logits = np.log(p / (1 - p)) if task == "multi_label" else np.log(p)
    names = tuple(str(k) for k in range(p.shape[1]))
    return Predictions(task=task, logits=logits.astype(np.float32), targets=np.array(targets), label_names=names)


def drawn(N: int, K: int, task: str, scale: float, seed: int = 0) -> Predictions:
    """Return logits `scale` times those whose probabilities the targets were drawn from."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((N, K))
    if task == "single_label":
        targets = (logits + rng.gumbel(size=(N, K))).argmax(axis=1)  # Gumbel: a draw from softmax(logits)
    else:
        targets = (logits + rng.logistic(size=(N, K)) > 0).astype(int)
    names = tuple(str(k) for k in range(K))
    return Predictions(task=task, logits=(scale * logits).astype(np.float32), targets=targets, label_names=names)


@pytest.mark.parametrize("confidence", [0.55, 0.8, 0.99])
@pytest.mark.parametrize("right", [0, 3, 10])
def test_ece_of_equal_confidences_is_their_gap_to_the_accuracy(confidence, right):
    found = reliability(said([confidence] * 10, [0] * right + [1] * (10 - right)))
    assert found.ece == pytest.approx(abs(right / 10 - confidence), abs=1e-6)
    assert found.counts.sum() == found.counts.max() == 10


def test_ece_of_two_bins_is_their_weighted_mean():
    """3 at 0.9 of which 2 are right, 1 at 0.6 that is right: 3/4 |2/3 - 0.9| + 1/4 |1 - 0.6|."""
    found = reliability(said([0.9, 0.9, 0.9, 0.6], [0, 0, 1, 0]))
    assert found.ece == pytest.approx(3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * 0.4)


def test_within_a_bin_gaps_of_opposite_sign_cancel():
    """0.81 right and 0.85 wrong share the bin (0.8, 0.8667]: |1/2 - 0.83|, and not the mean of 0.19 and 0.85."""
    assert reliability(said([0.81, 0.85], [0, 1])).ece == pytest.approx(0.33, abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    found = reliability(said([0.5, 1.0 - 1e-12], [0, 0]), bins=2)
    assert found.counts.tolist() == [1, 1]


def test_empty_bins_are_nan_and_cost_nothing():
    found = reliability(said([0.9, 0.9], [0, 0]))
    filled = found.counts > 0
    assert filled.sum() == 1 and len(found.counts) == BINS
    assert np.isnan(found.accuracy[~filled]).all() and np.isnan(found.confidence[~filled]).all()
    assert found.ece == pytest.approx(0.1, abs=1e-6)


def test_ece_of_multi_label_compares_the_probability_of_a_label_with_how_often_it_is_there():
    """Probability 0.1 and never there is as good as 0.9 and always there; a top-class rule would not see the first."""
    found = reliability(said([[0.1, 0.9], [0.1, 0.9]], [[0, 1], [0, 1]], task="multi_label"))
    assert found.ece == pytest.approx(0.1, abs=1e-6)
    assert found.counts.sum() == 4
    zero = reliability(said([[1e-30, 0.9]], [[0, 1]], task="multi_label"))
    assert zero.counts[0] == 1


@pytest.mark.parametrize("task, K", [("single_label", 2), ("single_label", 5), ("multi_label", 1), ("multi_label", 3)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_minimum_of_a_dense_search(task, K, scale):
    valid = drawn(400, K, task, scale)
    found = fit_temperature(valid)
    grid = np.geomspace(0.05, 20, 4001)
    values = [losses(dataclasses.replace(valid, logits=valid.logits.astype(np.float64) / t)).mean() for t in grid]
    assert not found.note
    assert found.value == pytest.approx(grid[np.argmin(values)], rel=2e-3)  # neighbours of the grid are 0.15 % apart


@pytest.mark.parametrize("task, K", [("single_label", 4), ("multi_label", 3)])
def test_the_temperature_undoes_a_known_scale(task, K):
    """Targets are drawn from softmax(z) and the logits are 3 z: T is 3, and ECE falls to what chance leaves."""
    valid, test = drawn(4000, K, task, 3.0, seed=1), drawn(4000, K, task, 3.0, seed=2)
    found = fit_temperature(valid)
    assert found.value == pytest.approx(3.0, rel=0.07)
    assert reliability(test).ece > 0.1
    assert reliability(calibrated(test, found.value)).ece < 0.03


def test_a_temperature_changes_no_decision():
    predictions = drawn(300, 4, "single_label", 2.0)
    before, after = measure(predictions).figures(), measure(calibrated(predictions, 2.0)).figures()
    assert before.pop("loss") != after.pop("loss")
    assert before == after


def test_without_mistakes_there_is_no_temperature_to_find():
    """The likelihood only grows as T falls to 0: a confidence of 1 for all is not what 20 examples can tell."""
    found = fit_temperature(said([0.9] * 20, [0] * 20))
    assert (found.value, found.note) == (1.0, "the validation split wants less than 0.05: it has too few mistakes")


def test_logits_that_tell_nothing_keep_their_temperature():
    found = fit_temperature(said([0.9, 0.9], [0, 1]))
    assert found == Temperature(value=1.0, note="the validation split wants more than 20: logits tell little")


def test_a_regression_has_neither():
    predictions = Predictions(
        task="regression", logits=np.zeros((2, 1), np.float32), targets=np.zeros(2, np.float32), label_names=()
    )
    with pytest.raises(ValueError, match="no probabilities"):
        reliability(predictions)
    with pytest.raises(ValueError, match="no probabilities"):
        fit_temperature(predictions)
