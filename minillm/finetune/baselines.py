r"""What a figure is worth: two simple models that learnt from the same rows and are asked the same.

    majority   knows no text: how often each class is in the training rows; each label's share; the mean of the numbers
    tfidf      a linear model on counted words: logistic regression, one per label for multi_label, ridge regression

    word w in text x      tf-idf[w] = count of w in x * (log((1 + N) / (1 + texts with w)) + 1), then scaled to length 1
    a word                a run of letters, digits and underscores; a CJK ideograph alone; a sign that is none of these
    a pair of texts       its two texts, one after the other
    C                     of (1/4, 1, 4, 16, 64) that with the lowest loss on the validation rows; the smaller of equals

Nothing here sees a test split: a fitted baseline is a function of texts, and whoever holds the test rows calls it.

Read next: `report.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.finetune.augmentation import IDEOGRAPHS, Text
from minillm.finetune.metrics import losses
from minillm.finetune.predictions import Predictions

WORD = rf"[{IDEOGRAPHS}]|[^\W{IDEOGRAPHS}]+|[^\w\s]"
GRID = (0.25, 1.0, 4.0, 16.0, 64.0)  # C, the inverse strength of the penalty on the weights' squares
ITERATIONS = 1000
UNSEEN = 20.0  # nats by which a class without training rows is below the last of the others


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled rows. texts: N of them, or pairs. targets: (N,) or (N, K), as in `Predictions`."""

    texts: Sequence[Text]
    targets: NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A fitted simple model.

    name: as the report's table has it. note: what it is, in a few words.
    logits: texts -> (N, K) float32, or (N, 1) for regression, as a model's.
    """

    name: str
    note: str
    logits: Callable[[Sequence[Text]], NDArray[np.float32]]
    task: str
    label_names: tuple[str, ...]

    def predict(self, examples: Examples) -> Predictions:
        """Return what it says about some rows."""
        return Predictions(
            task=self.task,
            logits=self.logits(examples.texts),
            targets=examples.targets,
            label_names=self.label_names,
            texts=tuple(examples.texts),
        )


def majority(task: str, train: Examples, label_names: tuple[str, ...]) -> Baseline:
    """Return the baseline that gives every text the same answer, the best one that needs no text.

    Its probabilities are the shares in the training rows (of labels: of n of N rows (n + 1/2) / (N + 1), which is never
    0 or 1); its number is their mean.
    """
    row = _prior(task, train.targets, len(label_names))  # (K,)
    if task == "single_label":
        note = f"always {label_names[int(row.argmax())]}"
    elif task == "multi_label":
        said = [name for name, logit in zip(label_names, row, strict=True) if logit >= 0]
        note = f"always {' and '.join(said) or 'no label'}"
    else:
        note = f"always {row[0]:.4g}, the mean"
    return Baseline(
        name="majority",
        note=note,
        logits=lambda texts: np.tile(row, (len(texts), 1)),
        task=task,
        label_names=label_names,
    )


def tfidf(task: str, train: Examples, valid: Examples, label_names: tuple[str, ...]) -> Baseline:
    """Return a linear model on TF-IDF counts, its C chosen on the validation rows.

    A class without training rows has next to no probability; a label that all training rows agree on keeps that answer.

    Cost: five fits; 7 thousand sentences take 1.2 s on one core, and the number of classes multiplies that.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=WORD)
    counts = words.fit_transform(joined(train.texts))
    valid_counts = words.transform(joined(valid.texts))
    best, best_loss, best_strength = None, np.inf, 0.0
    for strength in GRID:
        model = _fit(task, counts, train.targets, strength, len(label_names))
        said = Predictions(task=task, logits=model(valid_counts), targets=valid.targets, label_names=label_names)
        loss = float(losses(said).mean())
        if loss < best_loss:
            best, best_loss, best_strength = model, loss, strength
    assert best is not None
    chosen: Callable[[Any], NDArray[np.float32]] = best
    kind = "ridge" if task == "regression" else "logistic"
    return Baseline(
        name="tfidf",
        note=f"{kind} regression on {counts.shape[1]:,} words, C = {best_strength:g}",
        logits=lambda texts: chosen(words.transform(joined(texts))),
        task=task,
        label_names=label_names,
    )


def joined(texts: Sequence[Text]) -> list[str]:
    """Return one string a row: of a pair its two texts, on two lines."""
    return [text if isinstance(text, str) else "\n".join(text) for text in texts]


def _prior(task: str, targets: NDArray, count: int) -> NDArray[np.float32]:
    """Return the logits (K,) of an answer that knows no text."""
    if task == "regression":
        return np.array([targets.mean()], np.float32)
    if task == "single_label":
        shares = np.maximum(np.bincount(targets, minlength=count), 0.5) / len(targets)
        return np.log(shares).astype(np.float32)
    shares = (targets.sum(axis=0) + 0.5) / (len(targets) + 1)
    return np.log(shares / (1 - shares)).astype(np.float32)


def _fit(task: str, counts: Any, targets: NDArray, strength: float, count: int) -> Callable[[Any], NDArray[np.float32]]:
    """Return word counts -> logits of a linear model."""
    if task == "regression":
        from sklearn.linear_model import Ridge

        ridge = Ridge(alpha=1 / strength).fit(counts, targets)
        return lambda x: np.asarray(ridge.predict(x), np.float32)[:, None]
    if task == "single_label":
        return _logistic(counts, targets, strength, _prior(task, targets, count))
    priors = _prior(task, targets, count)
    columns = [_logistic(counts, targets[:, k], strength, np.array([0.0, priors[k]], np.float32)) for k in range(count)]
    return lambda x: np.stack([(z := column(x))[:, 1] - z[:, 0] for column in columns], axis=1)


def _logistic(
    counts: Any, classes: NDArray, strength: float, prior: NDArray[np.float32]
) -> Callable[[Any], NDArray[np.float32]]:
    """Return word counts -> logits (N, K) of logistic regression; of the prior where there is one class only."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if np.ptp(classes) == 0:
        return lambda x: np.tile(prior, (x.shape[0], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline may be a little short of its optimum
        model = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(counts, classes)

    def logits(x: Any) -> NDArray[np.float32]:
        values = model.decision_function(x)  # (N, classes that were there), or (N,) for two
        values = np.stack([np.zeros_like(values), values], axis=1) if values.ndim == 1 else values
        found = np.repeat(values.min(axis=1, keepdims=True) - UNSEEN, len(prior), axis=1)
        found[:, model.classes_] = values
        return found.astype(np.float32)

    return logits
