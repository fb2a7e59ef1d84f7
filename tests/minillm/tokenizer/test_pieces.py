"""sentencepiece: the settings do what `pieces.py` says of them."""

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from minillm.data import stdlib
from minillm.errors import InputError
from minillm.tokenizer import pieces
from minillm.tokenizer.base import NAMES
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.pieces import BPETokenizer
from minillm.tokenizer.training import train_tokenizer

SENTENCEPIECE = ["bpe", "unigram"]


def train(kind, texts, **changed):
    """Train on texts; 600 tokens unless told otherwise."""
    return train_tokenizer(TokenizerConfig(kind=kind, **{"vocab_size": 600} | changed), texts)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_same_text_same_model(kind, trained, samples):
    """Two trainings with one number of threads give the same bytes, also from documents that come in parts."""
    again = train(kind, samples)
    assert again.files() == trained[kind].files()
    in_parts = [line for text in samples for line in text.splitlines(keepends=True)]
    assert train(kind, in_parts).files() == again.files()


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_size_is_what_was_asked_for(kind, trained):
    """Control symbols and bytes are included, and there is nothing to note."""
    assert trained[kind].vocab_size == 600
    assert trained[kind].notice == ""


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_small_text_gets_a_smaller_vocabulary(kind):
    """4,096 tokens cannot be filled from a sentence: fewer, a notice with both numbers, and text comes back."""
    tokenizer = train(kind, ["the cat sat on the mat, and the cat sat still\n"] * 3, vocab_size=4096)
    assert 7 + 256 < tokenizer.vocab_size < 400
    assert f"{tokenizer.vocab_size:,}" in tokenizer.notice and "4,096" in tokenizer.notice
    assert tokenizer.decode(tokenizer.encode("the mat")) == "the mat"


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_vocabulary_too_small_for_bytes_grows(kind, samples):
    """Bytes, control symbols and the text's characters are the least; fewer tokens are noted, not an error."""
    tokenizer = train(kind, samples, vocab_size=50)
    assert tokenizer.vocab_size > 7 + 256
    assert f"needs at least {tokenizer.vocab_size:,} tokens" in tokenizer.notice and "= 50" in tokenizer.notice


def test_names_of_control_symbols_in_the_training_text(samples):
    """A text full of them trains, and they still are characters."""
    for kind in SENTENCEPIECE:
        tokenizer = train(kind, [*samples, " ".join([*NAMES, "<0x0A>"]) * 300])
        ids = tokenizer.encode("".join(NAMES))
        assert min(ids) >= len(NAMES) and tokenizer.decode(ids) == "".join(NAMES)


def test_code_takes_fewer_tokens_with_pieces_of_white_space(monkeypatch):
    """Bytes a token on held-out code: more than without pieces of white space alone (2.93 and 1.96 on all of it)."""
    code = stdlib.code()
    texts, held_out = [code[name] for name in ("argparse.py", "ast.py", "bdb.py")], code["calendar.py"]
    ours = train("bpe", texts, vocab_size=1500)
    plain = sentencepiece.SentencePieceTrainer.Train

    def without(**options):
        return plain(**options | {"allow_whitespace_only_pieces": False})

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", without)
    theirs = train("bpe", texts, vocab_size=1500)
    assert len(theirs.encode(held_out)) > 1.2 * len(ours.encode(held_out))
    assert any(piece.strip(" ") == "" and len(piece) > 3 for piece in map(ours.piece, range(ours.vocab_size)))


@pytest.mark.parametrize("space", [" ", "\t", ""], ids=["spaces", "tabs", "no white space"])
def test_no_long_line_is_skipped(space):
    """A single line far above sentencepiece's limit teaches its words all the same."""
    line = space.join(["wonderful", "elephant"] * 3000)
    tokenizer = train("bpe", [line], vocab_size=320)
    assert len(tokenizer.encode("elephant")) <= 4


@given(line=st.text("ab \té漢😀", max_size=200), limit=st.integers(4, 20))
def test_cuts_of_a_line(line, limit):
    """Nothing is lost, no part is longer than the limit, no character is cut, and white space is preferred."""
    data = line.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LINE_BYTES", limit)
        parts = [data[start:stop].decode() for start, stop in pieces._cuts(data)]
    assert "".join(parts) == line
    assert all(0 < len(part.encode()) <= limit for part in parts) or not line
    for before, after in zip(parts, parts[1:], strict=False):
        assert after[0] in " \t" or not set(before[1:]) & set(" \t")


def test_training_ends_at_its_limit(samples):
    """Text after `max_training_bytes` has no influence."""
    first = "".join(samples[:3])
    limited = {"max_training_bytes": len(first.encode()) - 1}
    assert train("bpe", [first], **limited).files() == train("bpe", [first, "zebra " * 5000], **limited).files()


def test_rare_characters_go_as_bytes(samples):
    """A character below the coverage has no piece of its own and still comes back; at a coverage of 1 none is below."""
    tokenizer = train("bpe", [*samples, "漢"])
    assert [tokenizer.piece(token) for token in tokenizer.encode("漢")] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    all_of_them = train("bpe", [*samples, "漢"], character_coverage=1.0)
    assert [all_of_them.piece(token) for token in all_of_them.encode("漢")] == ["漢"]


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_digits_stand_alone(kind, samples):
    """Numbers are read digit by digit, also one that the text is full of."""
    tokenizer = train(kind, [*samples, "in the year 2026\n" * 500])
    assert any(piece.strip() == "year" for piece in map(tokenizer.piece, range(tokenizer.vocab_size)))
    assert [p for p in map(tokenizer.piece, tokenizer.encode("2026")) if p.strip()] == ["2", "0", "2", "6"]


def test_a_model_of_another_making():
    """A sentencepiece model whose control symbols stand elsewhere is refused: its ids would mean other things."""
    import io

    model = io.BytesIO()
    text = iter(["the cat sat on the mat"] * 10)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=text, model_writer=model, vocab_size=20, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match=r"does not begin with <unk>, <s>, </s>, <pad>, \[MASK\]"):
        BPETokenizer(model.getvalue())


@pytest.mark.parametrize("changed", [{"add_dummy_prefix": True}, {"normalization_rule_name": "nfkc"}], ids=str)
def test_a_model_that_normalises_has_no_offsets(monkeypatch, samples, changed):
    """Pieces that are not the text's own characters are refused: a wrong place would be an answer that is not there."""
    plain = sentencepiece.SentencePieceTrainer.Train
    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", lambda **options: plain(**options | changed))
    tokenizer = train("bpe", samples)
    with pytest.raises(InputError, match="the bpe tokenizer rewrites text as it encodes it"):
        tokenizer.encode_with_offsets("ﬁne 漢")


def test_a_space_without_a_piece_of_its_own():
    """Where the training text had no space, one goes as three bytes, those of U+2581, and comes back as a space."""
    tokenizer = train("bpe", ["ab\n" * 9])
    assert tokenizer.encode_with_offsets("a b")[1] == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_no_vocabulary_at_all(monkeypatch):
    """Where sentencepiece refuses every size, the line says what else there is."""

    def refuse(**_):
        raise RuntimeError("Internal: no")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", refuse)
    with pytest.raises(InputError, match="set tokenizer.kind to byte or char"):
        train("bpe", ["text"])
