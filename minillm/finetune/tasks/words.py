r"""Words and the text that they stand in: each word is text[start:stop].

    "Ada saw 北京."   ->  Ada saw 北 京 .      letters, digits, marks together; each CJK character and all else alone
    Ada saw 北 京 .   ->  "Ada saw 北京."      a space between two words, but not between CJK characters, nor before
                                               closing and behind opening punctuation that is a word of its own

The second is needed because a list of words has lost its spaces, and a model should meet them as it did in pretraining.

Read next: `tags.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from minillm.tokenizer.base import Span

CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # ideographs, kana
WIDE = re.compile("[\u3000-\u303f\uff00-\uffef]")  # CJK punctuation, full-width forms
CLOSING, OPENING = frozenset(".,;:!?%)]}"), frozenset("([{")


def split_words(text: str) -> list[Span]:
    """Return where the words of a text are; together they are all of it but the white space.

    >>> text = "It's 2°, in 北京."
    >>> [text[start:stop] for start, stop in split_words(text)]
    ['It', "'", 's', '2', '°', ',', 'in', '北', '京', '.']
    """
    spans: list[Span] = []
    inside = False  # whether the last word may go on
    for place, character in enumerate(text):
        if character.isspace():
            inside = False
        elif inside and _in_word(character):
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
            inside = _in_word(character)
    return spans


def join_words(words: Sequence[str]) -> tuple[str, list[Span]]:
    """Return the text that words make, by the rule at the head of this file, and where each of them is in it.

    >>> join_words(["Ada", "(", "9", ")", "saw", "北", "京", "."])
    ('Ada (9) saw 北京.', [(0, 3), (4, 5), (5, 6), (6, 7), (8, 11), (12, 13), (13, 14), (14, 15)])
    """
    parts: list[str] = []
    spans: list[Span] = []
    length, before = 0, ""
    for word in words:
        if before and not _touch(before, word):
            parts.append(" ")
            length += 1
        parts.append(word)
        spans.append((length, length + len(word)))
        length += len(word)
        before = word
    return "".join(parts), spans


def _in_word(character: str) -> bool:
    """Return whether a character makes one word with its neighbours: letters, marks, digits and the underscore do."""
    if CJK.match(character):
        return False
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def _touch(left: str, right: str) -> bool:
    """Return whether no space stands between two words."""
    if right in CLOSING or left in OPENING:
        return True
    return all(CJK.match(character) or WIDE.match(character) for character in (left[-1], right[0]))
