"""Exact match and F1 of answers, against examples worked by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.finetune.tasks.answers import best_threshold, exact_match, f1, words


@pytest.mark.parametrize(
    "answer, expected",
    [
        pytest.param("", [], id="nothing"),
        pytest.param("The  Eiffel\tTower.", ["eiffel", "tower"], id="case, article, space, full stop"),
        pytest.param("an apple a day", ["apple", "day"], id="articles"),
        pytest.param("theatre, Ann & anthem", ["theatre", "ann", "anthem"], id="words that begin like articles"),
        pytest.param("U.S.A.", ["usa"], id="points inside"),
        pytest.param("well-known $1,000", ["wellknown", "1000"], id="punctuation leaves no gap, as in SQuAD"),
        pytest.param("“quoted” – dash", ["“quoted”", "–", "dash"], id="Unicode's punctuation stays in English"),
        pytest.param("the", [], id="an article alone"),
        pytest.param("北京大学。", ["北", "京", "大", "学"], id="characters"),
        pytest.param("“北京”——2008年the奥运", ["北", "京", "2008", "年", "奥", "运"], id="mixed"),
        pytest.param("さくら サクラ", ["さ", "く", "ら", "サ", "ク", "ラ"], id="kana"),
        pytest.param("서울 시청", ["서울", "시청"], id="hangul has spaces"),
    ],
)
def test_words(answer, expected):
    """What is compared, by the rules at the head of the file."""
    assert words(answer) == expected


@pytest.mark.parametrize(
    "guess, truths, exact, shared",
    [
        pytest.param("the old harbour", ["Old harbour!"], 1.0, 1.0, id="normalised alike"),
        pytest.param("old harbour", ["the harbour"], 0.0, 2 * 1 / (2 + 1), id="one of two"),
        pytest.param("b b b c", ["b b d"], 0.0, 2 * 2 / (4 + 3), id="counted as often as both have it"),
        pytest.param("harbour", ["sea", "harbour wall"], 0.0, 2 * 1 / (1 + 2), id="the best truth"),
        pytest.param("sea", ["harbour", "sea"], 1.0, 1.0, id="exact with the second truth"),
        pytest.param("", [], 1.0, 1.0, id="rightly without an answer"),
        pytest.param("sea", [], 0.0, 0.0, id="an answer where there is none"),
        pytest.param("", ["sea"], 0.0, 0.0, id="no answer where there is one"),
        pytest.param("a", ["the"], 1.0, 1.0, id="articles alone: no words on both sides"),
        pytest.param("", ["the", "sea"], 0.0, 0.0, id="a truth of articles alone is none beside another"),
        pytest.param("sea", ["the", "sea"], 1.0, 1.0, id="the other one counts"),
        pytest.param("", ["the", "..."], 1.0, 1.0, id="truths without words: there is no answer"),
        pytest.param("sea", ["the"], 0.0, 0.0, id="an answer where the only truth has no words"),
        pytest.param("北京大学", ["北京"], 0.0, 2 * 2 / (4 + 2), id="by characters"),
        pytest.param("北 京", ["北京。"], 1.0, 1.0, id="spaces between characters say nothing"),
    ],
)
def test_by_hand(guess, truths, exact, shared):
    """The two figures of one question."""
    assert exact_match(guess, truths) == exact
    assert f1(guess, truths) == pytest.approx(shared)


QUESTIONS = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=7)


@given(questions=QUESTIONS)
def test_no_threshold_is_better(questions):
    """Against every threshold tried in turn; of equally good ones it is the one that answers most."""
    margins = [float(margin) for margin, _, _ in questions]
    answerable = [there for _, _, there in questions]
    scores = [score * there for _, score, there in questions]

    def mean(threshold):
        kept = [s if m <= threshold else float(not a) for m, s, a in zip(margins, scores, answerable, strict=True)]
        return sum(kept) / max(1, len(kept))

    threshold, best = best_threshold(margins, scores, answerable)
    tried = [mean(t) for t in itertools.chain(margins, [-float("inf"), float("inf")])]
    assert best == pytest.approx(max(tried)) and mean(threshold) == pytest.approx(best)
    assert math.isfinite(threshold)
    assert threshold == max((t for t in margins if mean(t) == pytest.approx(best)), default=threshold)
