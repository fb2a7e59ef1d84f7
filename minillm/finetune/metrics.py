r"""How good predictions are, over the whole split at once: a mean of batch means is another number for F1 and MCC.

All figures are scikit-learn's and SciPy's:

    single_label   accuracy, macro and weighted F1, MCC, a row per class, confusion matrix
    multi_label    subset accuracy, micro, macro and weighted F1, MCC, a row per label
    regression     Pearson, Spearman, MSE, MAE

A figure whose formula divides by zero is None, never 0 or 1: precision of a class that was never predicted, recall of a
class that the split does not hold, correlation with a constant. F1 = 2 TP / (2 TP + FP + FN) has one more case: a class
that is neither in the split nor predicted has none, and macro F1 is the mean over the others, which is what
scikit-learn does by default; a class that is absent but predicted counts with F1 = 0. MCC is 0 where targets or
predictions are of one class only.

Read next: `calibration.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax

from minillm.errors import InputError
from minillm.finetune.predictions import Predictions

UNDEFINED: Any = np.nan  # what 0 / 0 becomes; scikit-learn takes it, the types that are inferred for it do not


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """One class against all others; None: the formula divides by zero.

    support: examples of the class. predicted: examples that were said to be of it.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int


class Metrics:
    """The figures of predictions; a task's own are below."""

    def figures(self) -> dict[str, float | None]:
        """Return the summary by name: what is one number, or None."""
        return {name: value for name, value in vars(self).items() if value is None or isinstance(value, float)}


@dataclass(frozen=True, kw_only=True)
class SingleLabelMetrics(Metrics):
    """One class an example.

    accuracy, macro_f1, weighted_f1: in [0, 1]. mcc: Matthews correlation, in [-1, 1].
    loss: mean -log p(target), in nats.
    classes: in the order of the labels. confusion: (K, K) int64, examples by target (row) and prediction (column).
    """

    accuracy: float
    macro_f1: float
    weighted_f1: float
    mcc: float
    loss: float
    classes: tuple[ClassFigures, ...]
    confusion: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics(Metrics):
    """Any number of labels an example.

    accuracy: share of examples whose labels are all right. micro_f1: of all N * K decisions together, None where no
        label is there and none was said. macro_f1, weighted_f1: over labels, None where no label has an F1.
    mcc: of all decisions together. loss: mean over the decisions of -log p, in nats.
    classes: a row per label. thresholds: (K,), the probability from which on a label is said to be there.
    """

    accuracy: float
    micro_f1: float | None
    macro_f1: float | None
    weighted_f1: float | None
    mcc: float
    loss: float
    classes: tuple[ClassFigures, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RegressionMetrics(Metrics):
    """A number an example.

    pearson, spearman: in [-1, 1]; None for fewer than two examples or where one side is constant.
    mse, mae: in the target's unit, squared and plain. loss: the MSE / scale^2, which training minimises.
    """

    pearson: float | None
    spearman: float | None
    mse: float
    mae: float
    loss: float


def losses(predictions: Predictions) -> NDArray[np.float64]:
    """Return the loss of every target, in nats; of a regression the squared error in units of its scale.

        single_label   -log p(target)
        multi_label    -[y log p + (1 - y) log(1 - p)]
        regression     ((y - z) / scale)^2

    Returns:
        (N,), or (N, K) for multi_label, float64.
    """
    logits, targets = predictions.logits.astype(np.float64), targets_of(predictions)
    match predictions.task:
        case "single_label":
            return -log_softmax(logits, axis=1)[np.arange(len(targets)), targets]
        case "multi_label":
            return -log_expit(np.where(targets == 1, logits, -logits))
        case _:
            return np.square((logits[:, 0] - targets) / predictions.scale)


def targets_of(predictions: Predictions) -> NDArray:
    """Return the targets.

    Raises:
        ValueError: the table had no labels.
    """
    if predictions.targets is None:
        raise ValueError("these predictions have no targets: nothing can be said about how good they are")
    return predictions.targets


def measure(predictions: Predictions, thresholds: tuple[float, ...] | None = None) -> Metrics:
    """Return the figures of predictions.

    Args:
        thresholds: multi-label: the probability of each of K labels from which on it is there; None: 0.5 for all.
    Raises:
        InputError: a logit is not finite.
        ValueError: no examples, arrays whose shapes do not go together, or thresholds where there are none.

    Cost: a few passes over N * K numbers in float64.
    """
    _check(predictions)
    if thresholds is not None and predictions.task != "multi_label":
        raise ValueError(f"only multi_label predictions have thresholds, these are {predictions.task}")
    match predictions.task:
        case "single_label":
            return _single_label(predictions)
        case "multi_label":
            return _multi_label(predictions, thresholds or (0.5,) * len(predictions.label_names))
        case _:
            return _regression(predictions)


def _check(predictions: Predictions) -> None:
    logits, targets, names = predictions.logits, targets_of(predictions), predictions.label_names
    if predictions.task not in ("single_label", "multi_label", "regression"):
        raise ValueError(f"there are no figures for {predictions.task}; single_label, multi_label or regression")
    if len(targets) == 0:
        raise ValueError("there are no examples to measure")
    if predictions.task == "single_label" and len(names) < 2:
        raise ValueError(f"there is nothing to tell apart: the only class is {', '.join(names)}")
    expected = (len(targets), 1 if predictions.task == "regression" else len(names))
    if logits.shape != expected or targets.shape != (expected if predictions.task == "multi_label" else expected[:1]):
        raise ValueError(
            f"logits must be {expected} for {len(targets)} {predictions.task} examples of {len(names)} labels, "
            f"got {logits.shape} with targets {targets.shape}"
        )
    if not np.isfinite(logits).all():
        raise InputError(
            "the model gives NaN or infinite logits: its training diverged; take an earlier checkpoint, or train again"
        )


def _single_label(predictions: Predictions) -> SingleLabelMetrics:
    from sklearn import metrics

    targets, said, count = targets_of(predictions), predictions.logits.argmax(axis=1), len(predictions.label_names)
    confusion = metrics.confusion_matrix(targets, said, labels=np.arange(count))
    return SingleLabelMetrics(
        accuracy=float(metrics.accuracy_score(targets, said)),
        macro_f1=float(metrics.f1_score(targets, said, average="macro")),
        weighted_f1=float(metrics.f1_score(targets, said, average="weighted")),
        mcc=_mcc(targets, said),
        loss=float(losses(predictions).mean()),
        classes=class_figures(targets, said, predictions.label_names),
        confusion=confusion.astype(np.int64),
    )


def _multi_label(predictions: Predictions, thresholds: tuple[float, ...]) -> MultiLabelMetrics:
    from sklearn import metrics

    targets = targets_of(predictions).astype(np.int64)  # (N, K)
    said = decide(predictions.probabilities(), thresholds)  # (N, K)
    classes = class_figures(targets, said, predictions.label_names)
    known = [figures for figures in classes if figures.f1 is not None]
    weights = [figures.support for figures in known]
    ratios = [figures.f1 for figures in known if figures.f1 is not None]
    return MultiLabelMetrics(
        accuracy=float(metrics.accuracy_score(targets, said)),
        micro_f1=_known(metrics.f1_score(targets.ravel(), said.ravel(), zero_division=UNDEFINED)),
        macro_f1=float(np.mean(ratios)) if ratios else None,
        weighted_f1=float(np.average(ratios, weights=weights)) if sum(weights) else None,
        mcc=_mcc(targets.ravel(), said.ravel()),
        loss=float(losses(predictions).mean()),
        classes=classes,
        thresholds=thresholds,
    )


def _regression(predictions: Predictions) -> RegressionMetrics:
    from scipy import stats
    from sklearn import metrics

    targets, said = targets_of(predictions).astype(np.float64), predictions.logits[:, 0].astype(np.float64)
    correlated = len(targets) > 1 and np.ptp(targets) > 0 and np.ptp(said) > 0
    return RegressionMetrics(
        pearson=_correlation(stats.pearsonr(targets, said)) if correlated else None,
        spearman=_correlation(stats.spearmanr(targets, said)) if correlated else None,
        mse=float(metrics.mean_squared_error(targets, said)),
        mae=float(metrics.mean_absolute_error(targets, said)),
        loss=float(losses(predictions).mean()),
    )


def _mcc(targets: NDArray, said: NDArray) -> float:
    """Return Matthews' correlation; scikit-learn's 0 for one class only, without its warning."""
    from sklearn import metrics

    if np.ptp(targets) == 0 or np.ptp(said) == 0:
        return 0.0
    return float(metrics.matthews_corrcoef(targets, said))


def class_figures(targets: NDArray, said: NDArray, names: tuple[str, ...]) -> tuple[ClassFigures, ...]:
    """Return a row per class, for numbers of classes (N,), or for targets and predictions (N, K) of 0 and 1.

    Cost: one pass over them, whatever K is: every evaluation of a run asks for it.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = np.arange(len(names))
    if targets.ndim == 2 and len(names) == 1:  # scikit-learn takes one column for two classes, 0 and 1
        targets, said, numbers = targets[:, 0], said[:, 0], np.array([1])
    ratios: Any = precision_recall_fscore_support(
        targets, said, labels=numbers, average=None, zero_division=UNDEFINED
    )  # precision, recall, F1 and support, each (K,)
    predicted = np.bincount(said, minlength=numbers[-1] + 1)[numbers] if said.ndim == 1 else said.sum(axis=0)
    return tuple(
        ClassFigures(
            name=name, precision=_known(p), recall=_known(r), f1=_known(f), support=int(there), predicted=int(guessed)
        )
        for name, p, r, f, there, guessed in zip(names, *ratios, predicted, strict=True)
    )


def decide(shares: NDArray, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
    """Return which labels are there, (N, K) of 0 and 1: those whose probability is at least their threshold."""
    return (shares >= np.asarray(thresholds)).astype(np.int64)


def fit_thresholds(valid: Predictions) -> tuple[float, ...]:
    """Return the threshold of each label that gives the highest F1 on the validation split.

    A threshold lies halfway between two neighbouring probabilities. Of equally good ones the nearest to 0.5 is taken; a
    label without a positive example, or with positive ones only, tells nothing and keeps 0.5.

    Raises:
        ValueError: not multi_label.

    >>> logits, targets = np.array([[-3.0], [-2.0], [-1.0], [2.0]], np.float32), np.array([[0], [0], [1], [1]])
    >>> fit_thresholds(Predictions(task="multi_label", logits=logits, targets=targets, label_names=("late",)))
    (0.194...,)
    """
    if valid.task != "multi_label":
        raise ValueError(f"only multi_label predictions have thresholds, these are {valid.task}")
    targets, shares = targets_of(valid), valid.probabilities()
    return tuple(_fit_threshold(targets[:, k], shares[:, k]) for k in range(shares.shape[1]))


def _fit_threshold(targets: NDArray, shares: NDArray) -> float:
    from sklearn.metrics import precision_recall_curve

    if np.ptp(targets) == 0:
        return 0.5
    precision, recall, scores = precision_recall_curve(targets, shares)  # scores ascend; said where share >= score
    precision, recall = precision[:-1], recall[:-1]  # the last point has no score
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    between = (scores + np.concatenate([[0.0], scores[:-1]])) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(between[best[np.abs(between[best] - 0.5).argmin()]])


def _correlation(result: Any) -> float:
    """Return the coefficient of one of SciPy's results."""
    return float(result.statistic)


def _known(value: Any) -> float | None:
    """Return a figure, None where its formula divided by zero."""
    return None if np.isnan(value) else float(value)
