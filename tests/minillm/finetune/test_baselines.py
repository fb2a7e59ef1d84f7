"""The simple models: closed forms, scikit-learn's own pipelines as the truth, and what chooses C."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from minillm.finetune.baselines import GRID, WORD, Examples, joined, majority, tfidf
from minillm.finetune.metrics import measure

WORDS = {"good": ["fine", "bright", "warm"], "bad": ["dull", "cold", "flat"], "odd": ["green", "square", "loud"]}
FILLER = ["the", "a", "film", "it", "was", "and", "so"]
NAMES = ("bad", "good", "odd")


def drawn(N: int, seed: int, mistakes: float = 0.15) -> Examples:
    """Return N sentences of filler with words of their class, some of them labelled wrongly."""
    rng = np.random.default_rng(seed)
    texts, targets = [], rng.integers(3, size=N)
    for k in targets:
        words = [*rng.choice(FILLER, size=5), *rng.choice(WORDS[NAMES[k]], size=2)]
        texts.append(" ".join(rng.permutation(words)))
    wrong = rng.uniform(size=N) < mistakes
    return Examples(texts=texts, targets=np.where(wrong, rng.integers(3, size=N), targets))


def labelled(targets, texts=None) -> Examples:
    targets = np.array(targets)
    return Examples(texts=texts or ["some text"] * len(targets), targets=targets)


def test_majority_says_the_commonest_class_at_its_share():
    baseline = majority("single_label", labelled([0, 2, 2, 1]), NAMES)
    said = baseline.predict(labelled([0, 1, 2, 2, 2]))
    assert baseline.note == "always odd"
    assert said.probabilities() == pytest.approx(np.tile([0.25, 0.25, 0.5], (5, 1)))
    found = measure(said).figures()
    assert (found["accuracy"], found["mcc"]) == (0.6, 0.0)
    assert found["loss"] == pytest.approx(-(2 * np.log(0.25) + 3 * np.log(0.5)) / 5)


def test_majority_of_labels_is_each_labels_share():
    baseline = majority("multi_label", labelled([[1, 0], [1, 0], [0, 0]]), ("x", "y"))
    said = baseline.predict(labelled([[1, 1]]))
    assert baseline.note == "always x"
    assert said.probabilities() == pytest.approx(np.array([[2.5 / 4, 0.5 / 4]]))
    assert majority("multi_label", labelled([[0, 0], [0, 0]]), ("x", "y")).note == "always no label"


def test_majority_of_numbers_is_their_mean():
    baseline = majority("regression", labelled(np.array([1.0, 2.0, 6.0], np.float32)), ())
    assert baseline.note == "always 3, the mean"
    assert measure(baseline.predict(labelled(np.array([3.0, 5.0], np.float32)))).figures()["mse"] == 2.0


def test_tfidf_is_scikit_learns_pipeline_at_the_c_of_the_lowest_validation_loss():
    train, valid, test = drawn(200, 0), drawn(100, 1), drawn(60, 2)
    vectors = TfidfVectorizer(token_pattern=WORD)
    x = vectors.fit_transform(train.texts)
    models = {c: LogisticRegression(C=c, max_iter=1000).fit(x, train.targets) for c in GRID}
    scores = {c: log_loss(valid.targets, m.predict_proba(vectors.transform(valid.texts))) for c, m in models.items()}
    best = min(scores, key=scores.__getitem__)
    assert best not in (GRID[0], GRID[-1])  # else the grid's order alone could have chosen it
    baseline = tfidf("single_label", train, valid, NAMES)
    assert baseline.note == f"logistic regression on {x.shape[1]} words, C = {best:g}"
    expected = models[best].predict_proba(vectors.transform(test.texts))
    assert baseline.predict(test).probabilities() == pytest.approx(expected, abs=1e-5)


def test_tfidf_of_labels_is_one_regression_a_label():
    train, valid, test = (drawn(150, seed) for seed in (0, 1, 2))

    def of(e: Examples) -> Examples:
        return Examples(texts=e.texts, targets=np.stack([e.targets == 0, e.targets != 1], axis=1).astype(np.int64))

    baseline = tfidf("multi_label", of(train), of(valid), ("x", "y"))
    strength = float(baseline.note.rpartition(" ")[2])
    vectors = TfidfVectorizer(token_pattern=WORD)
    x = vectors.fit_transform(train.texts)
    shares = baseline.predict(of(test)).probabilities()
    for k in range(2):
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, of(train).targets[:, k])
        assert shares[:, k] == pytest.approx(model.predict_proba(vectors.transform(test.texts))[:, 1], abs=1e-5)


def test_tfidf_of_numbers_is_a_ridge_regression_of_strength_1_over_c():
    train, valid, test = (
        Examples(texts=e.texts, targets=(e.targets == 1).astype(np.float32))
        for e in (drawn(150, s, mistakes=0.02) for s in (0, 1, 2))
    )
    vectors = TfidfVectorizer(token_pattern=WORD)
    x = vectors.fit_transform(train.texts)
    models = {c: Ridge(alpha=1 / c).fit(x, train.targets) for c in GRID}
    scores = {c: np.mean((m.predict(vectors.transform(valid.texts)) - valid.targets) ** 2) for c, m in models.items()}
    best = min(scores, key=scores.__getitem__)
    assert best > 1
    baseline = tfidf("regression", train, valid, ())
    assert baseline.note == f"ridge regression on {x.shape[1]} words, C = {best:g}"
    expected = models[best].predict(vectors.transform(test.texts))
    assert baseline.predict(test).logits[:, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("fit", [majority, tfidf])
def test_no_test_rows_are_asked_for(fit):
    """Selection cannot see what it is not given."""
    assert not {"test", "others", "splits"} & set(inspect.signature(fit).parameters)


def test_tfidf_knows_a_class_without_training_rows_as_the_least_likely():
    train = labelled([0, 1, 0, 1], ["dull", "fine", "flat", "warm"])
    for names in (NAMES, (*NAMES, "more")):
        shares = tfidf("single_label", train, train, names).predict(train).probabilities()
        assert shares.shape == (4, len(names)) and shares[:, 2:].max() < 1e-6


def test_a_label_that_all_training_rows_agree_on_keeps_its_share():
    train = labelled([[1, 0], [1, 1], [1, 0]], ["dull", "fine", "flat"])
    shares = tfidf("multi_label", train, train, ("x", "y")).predict(train).probabilities()
    assert shares[:, 0] == pytest.approx([3.5 / 4] * 3)


def test_the_two_texts_of_a_pair_are_read_both():
    """The class is in the second text only."""
    single = drawn(120, 0, mistakes=0.0)
    pairs = Examples(texts=[("the film", text) for text in single.texts], targets=single.targets)
    assert joined(pairs.texts[:1]) == [f"the film\n{single.texts[0]}"]
    assert measure(tfidf("single_label", pairs, pairs, NAMES).predict(pairs)).figures()["accuracy"] == 1.0


def test_words_of_chinese_are_its_ideographs_and_signs_count():
    words = TfidfVectorizer(token_pattern=WORD).build_analyzer()
    assert words("很好 good_2 I!") == ["很", "好", "good_2", "i", "!"]


def test_a_text_of_unknown_words_or_none_gets_an_answer():
    train = drawn(50, 0)
    said = tfidf("single_label", train, train, NAMES).predict(labelled([0, 0], ["zzz", ""]))
    assert np.isfinite(said.logits).all() and said.logits[0].tolist() == said.logits[1].tolist()
