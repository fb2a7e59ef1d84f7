r"""How near an answer is to those that people gave: exact match and F1 after SQuAD's normalisation, CJK by characters.

    normalised    lower case, without punctuation, without the words a, an, the; white space says where words end
    words         by white space; each CJK character (ideographs, kana) is a word of its own
    exact match   1 where the words are the same, else 0
    F1            2 s / (g + t):  s words shared, each as often as both have it, g and t words of guess and truth

Each question counts by the best of its true answers; one that has no words is none. A question without an answer has
one true answer of no words: then, and where a guess has no words, F1 is the exact match. On text without CJK the
figures are those of the official script of SQuAD 2.0. In text with CJK all punctuation of Unicode goes, not that of
ASCII alone.

Source: Rajpurkar et al. (2016, 2018), arXiv:1606.05250, 1806.03822; characters as in MLQA, Lewis et al. (2020),
arXiv:1910.07475 (CMRC's own script takes the longest common part in place of the shared words).

Read next: `question_answering.py`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from minillm.finetune.tasks.words import CJK

ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(answer: str) -> list[str]:
    """Return the words of an answer that are compared.

    >>> words("The U.S. Army's 2nd!")
    ['us', 'armys', '2nd']
    >>> words("《北京》 2008年")
    ['北', '京', '2008', '年']
    """
    text = answer.lower()
    cjk = CJK.search(text) is not None
    text = "".join(c for c in text if c not in string.punctuation and not (cjk and unicodedata.category(c)[0] == "P"))
    return ARTICLES.sub(" ", CJK.sub(r" \g<0> ", text)).split()


def exact_match(guess: str, truths: Sequence[str]) -> float:
    """Return 1.0 where the guess has the words of a true answer, else 0.0; `truths` is empty where there is none."""
    return float(words(guess) in _truths(truths))


def f1(guess: str, truths: Sequence[str]) -> float:
    """Return the F1 of the shared words with the true answer that gives the highest, in [0, 1].

    >>> f1("in the old harbour", ["old harbour", "harbour"])
    0.8
    """
    return max(_f1(words(guess), truth) for truth in _truths(truths))


def _truths(answers: Sequence[str]) -> list[list[str]]:
    """Return the words of each true answer that has some; where none has, one answer of no words."""
    return [found for answer in answers if (found := words(answer))] or [[]]


def _f1(guess: list[str], truth: list[str]) -> float:
    if not guess or not truth:
        return float(guess == truth)
    shared = (Counter(guess) & Counter(truth)).total()
    return 2 * shared / (len(guess) + len(truth))


def best_threshold(
    margins: Sequence[float], scores: Sequence[float], answerable: Sequence[bool]
) -> tuple[float, float]:
    """Return (threshold, mean score) of the no-answer threshold with the highest mean score over some questions.

    A question whose margin is above the threshold is left without an answer; that scores 1 where it has none, else 0.

    Args:
        margins: of each question, the score of no answer minus that of the best answer.
        scores: what that answer would score: its F1, 0 where there is no true answer.
        answerable: whether the question has a true answer.
    Returns:
        of equal means the threshold that answers most; a finite one, also where all or none are to be answered.

    >>> best_threshold([-3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [True, True, False])
    (1.0, 1.0)
    """
    order = sorted(range(len(margins)), key=lambda i: -margins[i])
    threshold = max(margins, default=0.0)  # all are answered
    best = total = sum(scores)
    for place, i in enumerate(order):  # take the answers back, the most doubtful first
        total += (not answerable[i]) - scores[i]
        below = margins[order[place + 1]] if place + 1 < len(order) else margins[i] - 1.0
        if total > best and below < margins[i]:  # no threshold comes between equal margins
            best, threshold = total, below
    return threshold, best / max(1, len(margins))
