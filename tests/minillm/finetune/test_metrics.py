"""Figures over a whole split: scikit-learn's numbers, hand counts, and what a missing class does to each of them."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as truth

from minillm.errors import InputError
from minillm.finetune.metrics import (
    MultiLabelMetrics,
    RegressionMetrics,
    SingleLabelMetrics,
    class_figures,
    decide,
    fit_thresholds,
    losses,
    measure,
)
from minillm.finetune.predictions import Predictions


def single(targets, said, count=3, *, sure=2.0) -> Predictions:
    """Return predictions of the classes `said`, by a logit that is `sure` above the others."""
    logits = sure * np.eye(count, dtype=np.float32)[list(said)]
    names = tuple(f"class {k}" for k in range(count))
    return Predictions(task="single_label", logits=logits, targets=np.array(targets, dtype=np.int64), label_names=names)


def multi(targets, shares) -> Predictions:
    """Return multi-label predictions with these probabilities."""
    p = np.array(shares, dtype=np.float64)
    names = tuple(f"label {k}" for k in range(p.shape[1]))
    return Predictions(
        task="multi_label", logits=np.log(p / (1 - p)).astype(np.float32), targets=np.array(targets), label_names=names
    )


def number(targets, said) -> Predictions:
    """Return regression predictions."""
    return Predictions(
        task="regression",
        logits=np.array(said, dtype=np.float32)[:, None],
        targets=np.array(targets, np.float32),
        label_names=("score",),
    )


def drawn(N: int, K: int, seed: int = 0) -> Predictions:
    """Return N random predictions of K classes."""
    rng = np.random.default_rng(seed)
    names = tuple(str(k) for k in range(K))
    return Predictions(
        task="single_label",
        logits=(3 * rng.standard_normal((N, K))).astype(np.float32),
        targets=rng.integers(K, size=N),
        label_names=names,
    )


@pytest.mark.parametrize("N, K", [(200, 3), (37, 2), (500, 40)])
def test_single_label_figures_are_scikit_learns(N, K):
    predictions = drawn(N, K)
    found = measure(predictions)
    assert isinstance(found, SingleLabelMetrics)
    y, said = predictions.targets, predictions.logits.argmax(1)
    p = predictions.probabilities()
    assert found.figures() == pytest.approx(
        {
            "accuracy": truth.accuracy_score(y, said),
            "macro_f1": truth.f1_score(y, said, average="macro"),
            "weighted_f1": truth.f1_score(y, said, average="weighted"),
            "mcc": truth.matthews_corrcoef(y, said),
            "loss": truth.log_loss(y, p, labels=np.arange(K)),
        }
    )
    assert found.confusion.tolist() == truth.confusion_matrix(y, said, labels=np.arange(K)).tolist()
    precision, recall, f1, support = truth.precision_recall_fscore_support(y, said, zero_division=np.nan)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        mine = [getattr(row, name) for row in found.classes]
        assert [np.nan if v is None else v for v in mine] == pytest.approx(values.tolist(), nan_ok=True), name


def test_single_label_figures_by_hand():
    """Of 4 cats 3 are found and 1 dog is taken for a cat: all figures from the four counts."""
    found = measure(single([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], count=2, sure=np.log(3.0)))
    assert isinstance(found, SingleLabelMetrics)
    cat, dog = found.classes
    assert (cat.precision, cat.recall, cat.f1, cat.support, cat.predicted) == (0.75, 0.75, 0.75, 4, 4)
    assert (dog.precision, dog.recall, dog.f1, dog.support, dog.predicted) == (0.5, 0.5, 0.5, 2, 2)
    assert found.confusion.tolist() == [[3, 1], [1, 1]]
    assert found.accuracy == pytest.approx(4 / 6)
    assert (found.macro_f1, found.weighted_f1) == pytest.approx((0.625, (4 * 0.75 + 2 * 0.5) / 6))
    assert found.mcc == pytest.approx((3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2))
    assert found.loss == pytest.approx(-(4 * np.log(0.75) + 2 * np.log(0.25)) / 6)


def test_a_class_that_is_absent_from_the_split_and_never_predicted_does_not_count():
    """It has no figure, not 0 or 1, and macro F1 is the mean over the others, as in scikit-learn."""
    found = measure(single([0, 0, 1, 1], [0, 1, 1, 1]))
    assert isinstance(found, SingleLabelMetrics)
    absent = found.classes[2]
    assert (absent.precision, absent.recall, absent.f1, absent.support, absent.predicted) == (None, None, None, 0, 0)
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found.macro_f1 == truth.f1_score([0, 0, 1, 1], [0, 1, 1, 1], average="macro")
    assert found.confusion.shape == (3, 3)


def test_a_class_that_is_absent_but_predicted_counts_as_zero():
    """Its false positives are mistakes: F1 = 0 / FP."""
    found = measure(single([0, 0, 1, 1], [0, 2, 1, 1]))
    assert isinstance(found, SingleLabelMetrics)
    absent = found.classes[2]
    assert (absent.precision, absent.recall, absent.f1, absent.predicted) == (0.0, None, 0.0, 1)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.weighted_f1 == pytest.approx((2 * 2 / 3 + 2 * 1) / 4)


def test_a_class_that_is_never_predicted_has_no_precision_and_f1_zero():
    found = measure(single([0, 1, 2], [0, 1, 1]))
    assert isinstance(found, SingleLabelMetrics)
    assert (found.classes[2].precision, found.classes[2].recall, found.classes[2].f1) == (None, 0.0, 0.0)


@pytest.mark.parametrize("targets, said", [([1, 1, 1], [1, 1, 1]), ([1, 1, 1], [1, 0, 1]), ([0, 1, 0], [0, 0, 0])])
def test_one_class_only_has_mcc_zero_and_no_warning(targets, said):
    found = measure(single(targets, said))
    assert isinstance(found, SingleLabelMetrics)
    assert found.mcc == 0.0
    assert found.accuracy == pytest.approx(np.mean(np.array(targets) == said))


def test_the_loss_of_a_certain_mistake_is_its_logit_gap_and_not_a_clipped_log():
    """p(target) = 0 in float64; -log p is 800 all the same."""
    assert measure(single([0], [1], sure=800.0)).loss == pytest.approx(800.0)


def test_figures_do_not_depend_on_the_order_of_examples():
    predictions, order = drawn(101, 4), np.random.default_rng(1).permutation(101)
    shuffled = Predictions(
        task="single_label",
        logits=predictions.logits[order],
        targets=predictions.targets[order],
        label_names=predictions.label_names,
    )
    assert measure(shuffled).figures() == pytest.approx(measure(predictions).figures(), rel=1e-12)


@pytest.mark.parametrize("N, K", [(60, 4), (30, 1)])
def test_multi_label_figures_are_scikit_learns(N, K):
    rng = np.random.default_rng(2)
    targets, shares = rng.integers(2, size=(N, K)), rng.uniform(0.01, 0.99, size=(N, K))
    found = measure(multi(targets, shares))
    assert isinstance(found, MultiLabelMetrics)
    said = (shares >= 0.5).astype(int)
    per_label = [truth.f1_score(targets[:, k], said[:, k]) for k in range(K)]
    assert found.figures() == pytest.approx(
        {
            "accuracy": (targets == said).all(axis=1).mean(),
            "micro_f1": truth.f1_score(targets.ravel(), said.ravel()),
            "macro_f1": np.mean(per_label),
            "weighted_f1": np.average(per_label, weights=targets.sum(axis=0)),
            "mcc": truth.matthews_corrcoef(targets.ravel(), said.ravel()),
            "loss": np.mean([truth.log_loss(targets[:, k], shares[:, k], labels=[0, 1]) for k in range(K)]),
        },
        rel=1e-5,  # logits are float32
    )


def test_many_classes_are_counted_at_once():
    """By their numbers: no matrix of rows by classes is made, which for these would take 96 MB."""
    rng = np.random.default_rng(3)
    targets, said = rng.integers(0, 3000, (2, 4000))
    names = tuple(map(str, range(3000)))
    class_figures(targets[:9], said[:9], names)  # imports what it needs
    tracemalloc.start()
    found = class_figures(targets, said, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert sum(row.support for row in found) == sum(row.predicted for row in found) == 4000
    k = int(targets[targets == said][0])
    hits = ((targets == k) & (said == k)).sum()
    assert found[k].recall == pytest.approx(hits / (targets == k).sum())
    assert found[k].precision == pytest.approx(hits / (said == k).sum())


def test_a_label_that_nobody_has_and_nobody_says_has_no_f1():
    found = measure(multi([[1, 0], [1, 0]], [[0.9, 0.1], [0.2, 0.1]]))
    assert isinstance(found, MultiLabelMetrics)
    assert found.classes[1].f1 is None
    assert found.macro_f1 == found.classes[0].f1 == pytest.approx(2 / 3)
    nothing = measure(multi([[0, 0]], [[0.1, 0.1]]))
    assert isinstance(nothing, MultiLabelMetrics)
    assert (nothing.micro_f1, nothing.macro_f1, nothing.weighted_f1, nothing.accuracy) == (None, None, None, 1.0)


def test_thresholds_of_each_label_are_applied():
    predictions = multi([[1, 1], [0, 0]], [[0.4, 0.9], [0.1, 0.7]])
    assert measure(predictions).figures()["accuracy"] == 0.0
    found = measure(predictions, thresholds=(0.3, 0.8))
    assert isinstance(found, MultiLabelMetrics)
    assert (found.accuracy, found.thresholds) == (1.0, (0.3, 0.8))


def test_a_fitted_threshold_gives_the_best_f1_of_all_thresholds():
    """Against every threshold that could make a difference, tried one by one."""
    rng = np.random.default_rng(3)
    targets = (rng.uniform(size=(80, 3)) < [0.1, 0.4, 0.8]).astype(int)
    shares = np.clip(0.3 * targets + rng.uniform(0.05, 0.6, size=(80, 3)), 0.01, 0.99)
    valid = multi(targets, shares)
    p = valid.probabilities()
    fitted = fit_thresholds(valid)
    for k, threshold in enumerate(fitted):
        best = max(truth.f1_score(targets[:, k], p[:, k] >= t) for t in p[:, k])
        assert truth.f1_score(targets[:, k], p[:, k] >= threshold) == pytest.approx(best)
    assert (decide(p, fitted) == (p >= np.array(fitted))).all()


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    """Below 0.1 two of four are rightly said, below 0.8 the one of one: F1 is 2/3 for both."""
    (fitted,) = fit_thresholds(multi([[0], [1], [0], [0], [1]], [[0.02], [0.1], [0.3], [0.4], [0.8]]))
    assert fitted == pytest.approx((0.4 + 0.8) / 2)


@pytest.mark.parametrize("all_of_it", [0, 1])
def test_a_label_that_tells_nothing_keeps_one_half(all_of_it):
    assert fit_thresholds(multi([[all_of_it]] * 3, [[0.2], [0.3], [0.9]])) == (0.5,)


def test_regression_figures_are_scipys():
    rng = np.random.default_rng(4)
    y = rng.standard_normal(50).astype(np.float32)
    said = (y + 0.5 * rng.standard_normal(50)).astype(np.float32)
    found = measure(number(y, said))
    assert isinstance(found, RegressionMetrics)
    assert found.figures() == pytest.approx(
        {
            "pearson": np.corrcoef(y, said)[0, 1],
            "spearman": np.corrcoef(stats.rankdata(y), stats.rankdata(said))[0, 1],
            "mse": np.mean((y - said) ** 2),
            "mae": np.mean(np.abs(y - said)),
            "loss": np.mean((y - said) ** 2),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    "targets, said", [([1.0], [2.0]), ([1.0, 1.0], [0.0, 2.0]), ([0.0, 2.0], [1.0, 1.0])], ids=["one", "y", "z"]
)
def test_a_correlation_with_a_constant_is_none_without_a_warning(targets, said):
    found = measure(number(targets, said))
    assert isinstance(found, RegressionMetrics)
    assert (found.pearson, found.spearman, found.mse) == (None, None, 1.0)


def test_losses_are_one_number_a_target():
    assert losses(single([0, 1], [0, 0])).shape == (2,)
    assert losses(multi([[0, 1]], [[0.25, 0.25]])) == pytest.approx(np.array([[-np.log(0.75), -np.log(0.25)]]))
    said = number([1.0, 2.0], [1.0, 4.0])
    assert losses(said).tolist() == [0.0, 4.0]
    assert measure(dataclasses.replace(said, scale=2.0)).figures()["loss"] == 0.5  # and its MSE is 2


@pytest.mark.parametrize(
    "ask, error, words",
    [
        (lambda: measure(single([], [])), ValueError, "no examples"),
        (lambda: measure(single([0], [0], count=1)), ValueError, "nothing to tell apart: the only class is class 0"),
        (lambda: measure(single([0], [0], sure=np.nan)), InputError, "NaN or infinite logits"),
        (lambda: measure(single([0], [0]), thresholds=(0.5,)), ValueError, "only multi_label"),
        (lambda: fit_thresholds(single([0], [0])), ValueError, "only multi_label"),
        (lambda: measure(dataclasses.replace(single([0], [0]), targets=None)), ValueError, "have no targets"),
        (lambda: measure(dataclasses.replace(single([0], [0]), task="ranking")), ValueError, "no figures for ranking"),
        (
            lambda: measure(
                Predictions(
                    task="single_label", logits=np.zeros((3, 2)), targets=np.zeros(4, int), label_names=("a", "b")
                )
            ),
            ValueError,
            r"logits must be \(4, 2\) for 4 single_label examples of 2 labels, got \(3, 2\) with targets \(4,\)",
        ),
    ],
    ids=["empty", "one-class", "nan", "thresholds", "fit", "unlabelled", "task", "shapes"],
)
def test_what_cannot_be_measured_is_said_in_one_line(ask, error, words):
    with pytest.raises(error, match=words):
        ask()
