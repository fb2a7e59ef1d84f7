"""Characters as tokens."""

import pytest

from minillm.errors import InputError
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer


def test_alphabet_is_the_texts():
    """Every character once, by code point, wherever it stands; line ends and tabs too."""
    tokenizer = CharacterTokenizer.train(["ba\n", "c\ta😀"])
    assert tokenizer.alphabet == "\t\nabc😀"
    assert tokenizer.vocab_size == 7 + 6
    assert tokenizer.encode("a😀") == [9, 12]
    assert tokenizer.decode(tokenizer.encode("cab\n\t😀")) == "cab\n\t😀"


def test_unknown_characters_are_unk_and_seen_in_the_text():
    """No crash, no lost place: one token each, shown as U+FFFD."""
    tokenizer = CharacterTokenizer("abc")
    assert tokenizer.encode("aéb漢") == [7, 0, 8, 0]
    assert tokenizer.decode([7, 0, 8, 0]) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_nothing_to_train_on(kind, documents):
    """An empty text is the user's to mend."""
    with pytest.raises(InputError, match="empty text"):
        train_tokenizer(TokenizerConfig(kind=kind), documents)


def test_sentencepiece_needs_more_than_line_ends():
    """A text of newlines alone holds no piece, but it has a character."""
    with pytest.raises(InputError, match="empty text"):
        train_tokenizer(TokenizerConfig(kind="bpe"), ["\n\n\n"])
    assert train_tokenizer(TokenizerConfig(kind="char"), ["\n\n\n"]).vocab_size == 8
