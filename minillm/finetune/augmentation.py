r"""Texts that are changed a little, anew in every epoch, without a network or a dictionary; labels stay.

    as it is    a fine film with a warm heart
    replace     a fine film with a dull heart       a word drawn from the training texts, common words more often
    delete      a film with a warm heart            never all words
    swap        a fine heart with a warm film       two words change places

Words are what white space parts, and CJK ideographs one by one; the white space between the words that stay is kept. A
text of an epoch is a pure function of (seed, epoch, row, text): a resumed run meets the texts that it would have met.
Only who trains calls this: evaluation and `predict` read tables as they are. It is for whole texts. In tagging and
question answering targets stand at words, which must not move.

Small changes help where rows are few (Wei and Zou, 2019: most below 500); one that turns "good" into "bad" teaches a
wrong label, so shares above 0.1 seldom pay.

Source: Wei and Zou (2019), arXiv:1901.11196 (EDA); replacing by frequency as in Xie et al. (2017), arXiv:1703.02573.

Read next: `ensemble.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minillm.config import setting
from minillm.data.sampler import mix

IDEOGRAPHS = r"\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"(\s*)([{IDEOGRAPHS}]|[^\s{IDEOGRAPHS}]+)")
AUGMENTATION = 200  # what a seed is mixed with

Text = str | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How training texts are changed: the section [augmentation]."""

    share: float = setting(0.0, "probability that a text is changed at all in an epoch; 0: none is")
    replace: float = setting(0.1, "probability that a word becomes another one of the training texts")
    delete: float = setting(0.1, "probability that a word goes")
    swap: float = setting(0.1, "words that change places with another one, as a share of a text's words")

    def __post_init__(self) -> None:
        for name in ("share", "replace", "delete", "swap"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augmentation.{name} must be in [0, 1], got {getattr(self, name)}")


class Augmenter:
    """Changes the texts of a training table."""

    def __init__(self, config: AugmentationConfig, texts: Sequence[Text], *, seed: int) -> None:
        """Count the words of the training texts.

        Args:
            seed: of the run.
        """
        self.config, self.seed = config, seed
        counts = Counter(
            word
            for text in texts
            for side in ((text,) if isinstance(text, str) else text)
            for _, word in words_of(side)
        )
        self.vocabulary = sorted(counts)
        frequency = np.array([counts[word] for word in self.vocabulary], dtype=np.float64)
        self.cumulative = np.cumsum(frequency) / max(frequency.sum(), 1.0)

    def text(self, text: Text, *, epoch: int, row: int) -> Text:
        """Return one text as an epoch has it; of a pair each side is changed by itself.

        Cost: some 50 microseconds for 20 words.
        """
        rng = np.random.default_rng(mix(self.seed, AUGMENTATION, epoch, row))
        if rng.random() >= self.config.share:
            return text
        if isinstance(text, str):
            return self._changed(text, rng)
        return self._changed(text[0], rng), self._changed(text[1], rng)

    def _changed(self, text: str, rng: np.random.Generator) -> str:
        """Return a text with some words replaced, some gone and some in other places."""
        parts = words_of(text)
        if not parts:
            return text
        spaces, words = [space for space, _ in parts], [word for _, word in parts]
        n = len(words)
        for place in np.flatnonzero(rng.random(n) < self.config.replace):
            words[place] = self.vocabulary[int(np.searchsorted(self.cumulative, rng.random(), side="right"))]
        for _ in range(rng.binomial(n, self.config.swap) if n > 1 else 0):
            one, other = rng.choice(n, size=2, replace=False)
            words[one], words[other] = words[other], words[one]
        kept = rng.random(n) >= self.config.delete
        kept[rng.integers(n)] |= not kept.any()
        return "".join(space + word for space, word, stays in zip(spaces, words, kept, strict=True) if stays).strip()


def words_of(text: str) -> list[tuple[str, str]]:
    """Return (white space before it, word) for every word of a text.

    >>> words_of("a  fine 电影")
    [('', 'a'), ('  ', 'fine'), (' ', '电'), ('', '影')]
    """
    return [(found[1], found[2]) for found in WORD.finditer(text)]
