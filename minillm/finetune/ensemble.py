r"""One answer of several models, such as those of several seeds: the mean of what they say.

    single_label, multi_label   p = (p_1 + ... + p_M) / M
    regression                  z = (z_1 + ... + z_M) / M

It is an opinion pool and no vote, so that a model that is sure counts more. By Jensen's inequality its loss is at most
the mean of the models' losses.

Read next: `report.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp

from minillm.finetune.predictions import Predictions


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Return the mean of several models' predictions of the same rows.

    Its logits are those whose softmax, or sigmoid, is the mean probability; means are taken of logarithms in float64,
    so that probabilities near 0 and 1 keep their digits.

    Raises:
        ValueError: no members, or members of other rows, labels or tasks.

    >>> one, other = (np.log(np.array([[p, 1 - p]], np.float32)) for p in (0.9, 0.5))
    >>> said = Predictions(task="single_label", logits=one, targets=np.array([0]), label_names=("a", "b"))
    >>> ensemble([said, dataclasses.replace(said, logits=other)]).probabilities().round(6)
    array([[0.7, 0.3]], dtype=float32)
    """
    if not members:
        raise ValueError("an ensemble needs members; give at least one model's predictions")
    first = members[0]
    for number, member in enumerate(members):
        same = member.task == first.task and member.label_names == first.label_names
        same = same and member.logits.shape == first.logits.shape
        if not same or not np.array_equal(_targets(member), _targets(first)):
            raise ValueError(f"member {number} of the ensemble is of other rows or labels than member 0")
    logits = np.stack([member.logits for member in members]).astype(np.float64)  # (M, N, K)
    match first.task:
        case "single_label":
            mean = _mean_of_logarithms(log_softmax(logits, axis=2))
        case "multi_label":
            mean = _mean_of_logarithms(log_expit(logits)) - _mean_of_logarithms(log_expit(-logits))
        case _:
            mean = logits.mean(axis=0)
    return dataclasses.replace(first, logits=mean.astype(np.float32))


def _mean_of_logarithms(values: np.ndarray) -> np.ndarray:
    """Return log mean exp over the members, (N, K) for (M, N, K)."""
    return logsumexp(values, axis=0) - np.log(len(values))


def _targets(member: Predictions) -> np.ndarray:
    return np.empty(0) if member.targets is None else member.targets
