"""The ensemble is the mean of probabilities, or of numbers, and its loss is no worse than the mean loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minillm.finetune.ensemble import ensemble
from minillm.finetune.metrics import losses
from minillm.finetune.predictions import Predictions


def members(task: str, count: int = 3, N: int = 40, K: int = 4) -> list[Predictions]:
    """Return what some models say about the same rows."""
    rng = np.random.default_rng(0)
    targets = rng.integers(K, size=N)
    if task == "multi_label":
        targets = rng.integers(2, size=(N, K))
    if task == "regression":
        targets, K = rng.standard_normal(N).astype(np.float32), 1
    names = () if task == "regression" else tuple(str(k) for k in range(K))
    first = Predictions(
        task=task, logits=rng.standard_normal((N, K)).astype(np.float32), targets=targets, label_names=names
    )
    draw = (5 * rng.standard_normal((count, N, K))).astype(np.float32)
    return [dataclasses.replace(first, logits=logits) for logits in draw]


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_probabilities_are_the_mean(task):
    said = members(task)
    mean = np.mean([member.probabilities().astype(np.float64) for member in said], axis=0)
    assert ensemble(said).probabilities() == pytest.approx(mean, rel=1e-5, abs=1e-7)


def test_numbers_are_the_mean():
    said = members("regression")
    assert ensemble(said).logits == pytest.approx(np.mean([member.logits for member in said], axis=0), abs=1e-6)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_the_loss_is_at_most_the_mean_of_the_losses(task):
    said = members(task)
    assert losses(ensemble(said)).mean() < np.mean([losses(member).mean() for member in said])


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_one_member_is_itself(task):
    (only,) = members(task, count=1)
    assert losses(ensemble([only])) == pytest.approx(losses(only), rel=1e-5, abs=1e-6)


def test_certainties_keep_their_digits():
    """Two models that are sure by 80 nats: p = 1 in float64, and the logits still differ by 80."""
    (only,) = members("single_label", count=1, N=1, K=2)
    said = dataclasses.replace(only, logits=np.array([[0.0, 80.0]], np.float32), targets=np.array([0]))
    assert losses(ensemble([said, said])) == pytest.approx([80.0])
    label = dataclasses.replace(said, task="multi_label", targets=np.array([[0, 0]]))
    assert losses(ensemble([label, label]))[0, 1] == pytest.approx(80.0)


@pytest.mark.parametrize(
    "change",
    [
        {"label_names": ("a", "b", "c", "d")},
        {"targets": np.zeros(40, np.int64)},
        {"targets": None},
        {"logits": np.zeros((39, 4), np.float32)},
        {"task": "multi_label"},
    ],
    ids=["labels", "targets", "unlabelled", "rows", "task"],
)
def test_members_of_other_rows_are_refused(change):
    first, second = members("single_label", count=2)
    with pytest.raises(ValueError, match="member 1 of the ensemble is of other rows or labels"):
        ensemble([first, dataclasses.replace(second, **change)])


def test_no_members_are_refused():
    with pytest.raises(ValueError, match="an ensemble needs members"):
        ensemble([])
