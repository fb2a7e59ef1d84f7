r"""Do probabilities mean what they say? Reliability bins, expected calibration error, and a temperature that mends it.

    single_label   c_i = probability of the predicted class      r_i = 1 where it is the target      i = 1 .. N
    multi_label    c_i = probability of a label                  r_i = 1 where the label is there    i = 1 .. N * K

    bin b holds the i with (b - 1) / B < c_i <= b / B,  B = 15;  c_i = 0 is in the first one
    ECE = sum over bins of n_b / n * |mean of r in b - mean of c in b|

The temperature divides the logits. It is fitted on the validation split, never on the test split: with beta = 1 / T

    NLL(beta) = sum_i [ log sum_k exp(beta z_ik) - beta z_iy ]        is convex in beta, so that there is one minimum

where d NLL / d beta = sum_i [ E_p z_i - z_iy ] crosses zero. Dividing by T > 0 changes no order of the logits: figures
that count decisions stay, probabilities move. `predict` gives those at the fitted temperature; training, evaluation
losses and the choice of the best checkpoint know nothing of it.

Source: Guo et al. (2017), arXiv:1706.04599; bins as in Naeini et al. (2015).

Read next: `baselines.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import expit, softmax

from minillm.finetune.metrics import targets_of
from minillm.finetune.predictions import Predictions

BINS = 15
LIMITS = (0.05, 20.0)  # of a temperature that is believed


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence and truth by bins; see the head of this file.

    edges: (B + 1,) from 0 to 1. counts: (B,) int64. confidence, accuracy: (B,), means in each bin; NaN in an empty one.
    ece: expected calibration error, in [0, 1].
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """value: T. note: why it is 1 where the validation split could not tell; empty: it was fitted."""

    value: float
    note: str = ""


def reliability(predictions: Predictions, bins: int = BINS) -> Reliability:
    """Return the reliability bins of predictions and their ECE.

    Args:
        bins: B, of equal width.
    Raises:
        ValueError: a regression, which has no probabilities, or no targets.

    >>> logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4]], np.float32))
    >>> targets = np.array([0, 1])  # right at 0.9, wrong at 0.6
    >>> said = Predictions(task="single_label", logits=logits, targets=targets, label_names=("a", "b"))
    >>> round(reliability(said).ece, 4)  # (|1 - 0.9| + |0 - 0.6|) / 2
    0.35
    """
    targets, shares = targets_of(predictions), predictions.probabilities().astype(np.float64)  # (N, K)
    if predictions.task == "single_label":
        confidence, right = shares.max(axis=1), shares.argmax(axis=1) == targets
    else:
        confidence, right = shares.ravel(), targets.ravel() == 1
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, right))
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = (total / counts for total in sums)
    gaps = np.abs(np.nan_to_num(accuracy - mean_confidence))
    return Reliability(
        edges=edges,
        counts=counts.astype(np.int64),
        confidence=mean_confidence,
        accuracy=accuracy,
        ece=float((gaps * counts).sum() / counts.sum()),
    )


def fit_temperature(valid: Predictions) -> Temperature:
    """Return the temperature that minimises the negative log likelihood of the validation split.

    There may be none to find: where every prediction is right the likelihood grows without end as T falls, and where
    logits say no more than chance it grows as T rises. A split whose best temperature is outside of 0.05 .. 20 does not
    determine one, and T stays 1, with a note.

    Args:
        valid: single_label or multi_label; one temperature serves all classes and labels.
    Raises:
        ValueError: a regression, or no targets.

    Cost: about 20 passes over N * K numbers.
    """
    if valid.task == "regression":
        raise ValueError("a regression has no probabilities, so there is no temperature to fit")
    logits, targets = valid.logits.astype(np.float64), targets_of(valid)
    smallest, largest = 1 / LIMITS[1], 1 / LIMITS[0]  # beta
    if _slope(smallest, logits, targets, valid.task) >= 0:
        return Temperature(value=1.0, note=f"the validation split wants more than {LIMITS[1]:g}: logits tell little")
    if _slope(largest, logits, targets, valid.task) <= 0:
        return Temperature(
            value=1.0, note=f"the validation split wants less than {LIMITS[0]:g}: it has too few mistakes"
        )
    found = root_scalar(_slope, args=(logits, targets, valid.task), bracket=(smallest, largest), xtol=1e-12)
    return Temperature(value=1 / found.root)


def _slope(beta: float, logits: NDArray[np.float64], targets: NDArray, task: str) -> float:
    """Return d NLL / d beta, (), which ascends in beta."""
    if task == "single_label":
        expected = (softmax(beta * logits, axis=1) * logits).sum(axis=1)
        return float((expected - logits[np.arange(len(targets)), targets]).sum())
    return float(((expit(beta * logits) - targets) * logits).sum())


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
    """Return predictions whose logits are divided by the temperature: the same decisions, other probabilities."""
    return dataclasses.replace(predictions, logits=(predictions.logits / np.float32(temperature)))
