"""Words out of texts, and texts out of words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.finetune.tasks.words import join_words, split_words

WORDS = st.lists(st.sampled_from(["Ada", "saw", "北", "京", "。", "Ｗ", ".", "(", ")", "%", "'s", "é", "..."]))


@given(text=st.text())
def test_words_are_all_but_white_space(text):
    """In order, apart, none empty, nothing left out."""
    spans = split_words(text)
    assert "".join(text[start:stop] for start, stop in spans) == "".join(text.split())
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges) and all(start < stop for start, stop in spans)


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param("", [], id="nothing"),
        pytest.param(" \t\n", [], id="white space"),
        pytest.param("snake_case x2", ["snake_case", "x2"], id="underscore and digits"),
        pytest.param("cafe\u0301 हिन्दी", ["cafe\u0301", "हिन्दी"], id="marks belong to their letters"),
        pytest.param("iPhone手机", ["iPhone", "手", "机"], id="CJK ends a word"),
        pytest.param("U.S.", ["U", ".", "S", "."], id="points alone"),
    ],
)
def test_split(text, words):
    """By hand."""
    assert [text[start:stop] for start, stop in split_words(text)] == words


@given(words=WORDS)
def test_joined_words_are_found_again(words):
    """Each span holds its word, and between two words there is nothing or one space."""
    text, spans = join_words(words)
    assert [text[start:stop] for start, stop in spans] == words
    gaps = [text[left[1] : right[0]] for left, right in zip(spans, spans[1:], strict=False)]
    assert set(gaps) <= {"", " "}


@pytest.mark.parametrize(
    "words, text",
    [
        (["Ada", "slept", "."], "Ada slept."),
        (["f", "(", "x", ")", ",", "y"], "f (x), y"),
        (["我", "爱", "北", "京", "。"], "我爱北京。"),
        (["在", "Paris", "的", "Ｗ"], "在 Paris 的Ｗ"),
        (["Ada", "...", "Bob"], "Ada ... Bob"),
    ],
    ids=str,
)
def test_join(words, text):
    """By hand."""
    assert join_words(words)[0] == text
