"""Changed texts: the same for the same epoch, of known words, never empty, and as often changed as asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from minillm.finetune.augmentation import AugmentationConfig, Augmenter, words_of

TEXTS = [f"w{n} the the the fine film number {n}" for n in range(200)]
LONG = " ".join(f"x{n}" for n in range(2000))


def augmenter(texts: Any = TEXTS, *, seed: int = 0, share: float = 1.0, **shares: float) -> Augmenter:
    """Return one that does only what is asked for."""
    chosen = {"replace": 0.0, "delete": 0.0, "swap": 0.0} | shares
    return Augmenter(AugmentationConfig(share=share, **chosen), texts, seed=seed)


def changed_by(one: Augmenter, texts: list[str], epoch: int = 0) -> list[Any]:
    """Return the texts of an epoch, in order."""
    return [one.text(text, epoch=epoch, row=row) for row, text in enumerate(texts)]


def test_a_text_is_a_function_of_seed_epoch_and_row():
    everything = {"replace": 0.3, "delete": 0.3, "swap": 0.3}
    one, same, other = (augmenter(seed=seed, **everything) for seed in (1, 1, 2))
    third = changed_by(one, TEXTS, 3)
    assert third == changed_by(same, TEXTS, 3)
    assert one.text(TEXTS[7], epoch=3, row=7) == third[7]  # whatever came before
    assert third != changed_by(one, TEXTS, 4)
    assert third != changed_by(other, TEXTS, 3)
    assert len({one.text(LONG, epoch=0, row=row) for row in range(5)}) == 5


@pytest.mark.parametrize("shares", [{}, {"share": 0.0, "replace": 1.0, "delete": 1.0, "swap": 1.0}])
def test_nothing_asked_for_changes_nothing(shares):
    assert changed_by(augmenter(**shares), TEXTS) == TEXTS


def test_the_defaults_are_off():
    assert changed_by(Augmenter(AugmentationConfig(), TEXTS, seed=0), TEXTS) == TEXTS


def test_swapping_keeps_the_words_and_the_white_space():
    changed = [augmenter(swap=0.5).text("a  b\tc d", epoch=0, row=row) for row in range(20)]
    for text in changed:
        assert sorted(text.split()) == ["a", "b", "c", "d"]
        assert [space for space, _ in words_of(text)] == ["", "  ", "\t", " "]
    assert len(set(changed)) > 5


def test_deleting_takes_its_share_and_keeps_the_order():
    words = augmenter(delete=0.3).text(LONG, epoch=0, row=0).split()
    assert len(words) == pytest.approx(0.7 * 2000, abs=4 * (2000 * 0.3 * 0.7) ** 0.5)
    assert words == sorted(words, key=lambda word: int(word[1:]))


def test_replacing_takes_its_share_by_the_training_texts_frequency():
    words = augmenter(replace=0.5).text(LONG, epoch=0, row=0).split()
    new = Counter(word for word, old in zip(words, LONG.split(), strict=True) if word != old)
    assert sum(new.values()) == pytest.approx(1000, abs=4 * 500**0.5)
    known = {word for text in TEXTS for word in text.split()}
    assert set(new) <= known
    assert new["the"] / sum(new.values()) == pytest.approx(3 / 8, abs=0.06)  # three of a text's eight words


@pytest.mark.parametrize("text", ["a", "one two three"])
def test_one_word_at_least_is_left(text):
    one = augmenter(delete=1.0)
    for row in range(20):
        assert one.text(text, epoch=0, row=row) in text.split()


def test_a_share_of_the_texts_is_changed():
    changed = changed_by(augmenter(share=0.25, delete=1.0), TEXTS * 10)
    assert sum(a != b for a, b in zip(changed, TEXTS * 10, strict=True)) == pytest.approx(500, abs=4 * 375**0.5)


def test_both_sides_of_a_pair_are_changed_by_themselves():
    first, second = augmenter([("a b", "c d")], delete=0.5).text((LONG, LONG), epoch=0, row=0)
    assert first != second and len(first) < len(LONG) and len(second) < len(LONG)


def test_ideographs_are_words():
    changed = augmenter(["很好的电影"], swap=1.0).text("很好的电影", epoch=0, row=0)
    assert sorted(changed) == sorted("很好的电影") and changed != "很好的电影"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_text_without_words_stays(text):
    assert augmenter(delete=1.0, replace=1.0).text(text, epoch=0, row=0) == text


@pytest.mark.parametrize("name", ["share", "replace", "delete", "swap"])
def test_a_share_outside_0_to_1_is_refused(name):
    with pytest.raises(ValueError, match=rf"augmentation.{name} must be in \[0, 1\], got 1.5"):
        AugmentationConfig(**{name: 1.5})
