"""Bytes as tokens."""

from minillm.tokenizer.byte import FIRST, ByteTokenizer


def test_a_token_for_each_byte():
    """Ids are bytes after the control symbols; there are 256 of them."""
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé") == [FIRST + byte for byte in (0x61, 0xC3, 0xA9)]
    assert tokenizer.vocab_size == FIRST + 256


def test_half_a_character_is_shown_as_such():
    """Bytes that are no UTF-8, as a model may write them, become U+FFFD."""
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("aé")[:-1]) == "a\ufffd"


def test_pieces():
    """Printable ones as they are, others by their number."""
    tokenizer = ByteTokenizer()
    assert [tokenizer.piece(FIRST + byte) for byte in (65, 32, 10, 255)] == ["A", " ", "<0x0A>", "<0xFF>"]
