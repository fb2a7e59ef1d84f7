"""What holds for every tokenizer: text comes back, never becomes a control symbol, and what is saved loads."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import InputError
from minillm.tokenizer.base import ALL_SPECIALS, FILE, NAMES, load_tokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

ODD = [
    pytest.param("", id="nothing"),
    pytest.param(" ", id="a space"),
    pytest.param("  two  spaces   at every place  ", id="spaces"),
    pytest.param("\tif x:\n\t\treturn\n\n\n    y\r\n", id="tabs and line ends"),
    pytest.param("Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½ Å", id="full width and ligatures"),
    pytest.param("汉字和，中文。", id="Chinese"),
    pytest.param("😀 👩‍👩‍👧 🇩🇪", id="emoji"),
    pytest.param("e\u0301a\u0308 \u200b\ufeff\u202e", id="combining and invisible marks"),
    pytest.param("\x00\x01\x1b\x7f\x85\u2028", id="control characters"),
    pytest.param("</s> <s> <unk> <pad> [MASK] [CLS] [SEP] <0x0A>", id="names of control symbols"),
]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte"])
def test_odd_text_comes_back(trained, kind, text):
    """Decoding gives exactly what was encoded, by itself, in a batch, and with control symbols around it."""
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "other", text]) == [ids, tokenizer.encode("other"), ids]
    assert tokenizer.decode([1, *ids, 4, 2, 3]) == text


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte"])
def test_any_text_comes_back(trained, kind, text):
    """The round trip holds for all of Unicode, and no token of it is a control symbol."""
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert all(len(NAMES) <= token < trained[kind].vocab_size for token in ids)


def check_offsets(tokenizer, text):
    """Tokens are those of `encode`; their places cover the text in order, and what stands there is what they decode to.

    Tokens with one place between them are the bytes of one character: they decode together.
    """
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and len(spans) == len(ids)
    together = itertools.groupby(zip(spans, ids, strict=True), key=lambda token: token[0])
    edge = 0
    for (start, stop), tokens in together:
        assert start == edge and stop > start
        surface = tokenizer.decode([token for _, token in tokens])
        assert surface == text[start:stop].replace("\u2581", " ") or (tokenizer.kind == "char" and surface == "\ufffd")
        edge = stop
    assert edge == len(text)


@pytest.mark.parametrize("text", ODD)
def test_offsets_of_odd_text(tokenizer, text):
    """Bytes of a character, spaces in a piece, control characters: each token has its own characters."""
    check_offsets(tokenizer, text)


@given(text=st.text(st.characters(codec="utf-8")) | st.text("ab e\u2581\u0301漢😀", max_size=30))
@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte", "char"])
def test_offsets_of_any_text(trained, kind, text):
    """For all of Unicode, U+2581 among them, as which sentencepiece writes a space."""
    text = (
        text.replace("\u2581", " ") if kind == "byte" else text
    )  # whose U+2581 stays one; `check_offsets` expects a space
    check_offsets(trained[kind], text)


def test_offsets_of_a_lone_surrogate(tokenizer):
    """It is encoded as a question mark, or as unk, and keeps its place."""
    assert tokenizer.encode_with_offsets("a\ud800b")[1] == [(0, 1), (1, 2), (2, 3)]


@given(parts=st.lists(st.sampled_from([*NAMES, "<", "[", "MASK", "]", ">", "/s", " ", "<0x00>", "\u2581", "a"])))
def test_text_produces_no_control_symbol(trained, parts):
    """Whatever stands in a text, no kind of tokenizer makes a control symbol of it; `char` has unk for the unknown."""
    for kind, tokenizer in trained.items():
        ids = set(tokenizer.encode("".join(parts)))
        assert not ids & set(tokenizer.specials.ids()) - ({0} if kind == "char" else set())


def test_control_symbols_stand_first(tokenizer):
    """Ids 0 to 6, in the order that the model files state, and they show their names."""
    assert tokenizer.specials == ALL_SPECIALS
    assert [tokenizer.piece(token) for token in range(7)] == list(NAMES)
    assert tokenizer.decode([1, 2, 3, 4, 5, 6]) == ""


def test_every_piece_is_shown(tokenizer):
    """Each id has a text for people; ids and pieces are as many as `vocab_size` says."""
    assert all(
        isinstance(tokenizer.piece(token), str) and tokenizer.piece(token) for token in range(tokenizer.vocab_size)
    )


def test_a_lone_surrogate_becomes_a_question_mark(trained):
    """Text that UTF-8 cannot hold (a broken file name, say) is no crash."""
    for kind in ("bpe", "unigram", "byte"):
        assert trained[kind].decode(trained[kind].encode("a\ud800b")) == "a?b"
    assert trained["char"].encode("\ud800") == [0]


def test_saved_and_loaded(tokenizer, tmp_path, samples):
    """The loaded one has the same kind, digest, size and tokens; nothing else is left in the folder."""
    tokenizer.save(tmp_path / "deep/folder")
    loaded = load_tokenizer(tmp_path / "deep/folder")
    assert type(loaded) is type(tokenizer)
    assert (loaded.digest, loaded.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
    assert loaded.encode(samples[0]) == tokenizer.encode(samples[0])
    assert {path.name for path in (tmp_path / "deep/folder").iterdir()} == set(tokenizer.files())


def test_digests_tell_tokenizers_apart(trained):
    """Four kinds, four digests; of one kind, two that learnt from other texts."""
    assert len({tokenizer.digest for tokenizer in trained.values()}) == 4
    for kind in ("bpe", "unigram", "char"):
        other = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=600), ["the cat sat on the mat\n"] * 9)
        assert other.digest != trained[kind].digest, kind


def test_a_failing_save_leaves_the_old_one(trained, tmp_path, monkeypatch):
    """The tokenizer that was there still loads, and no draft stays."""
    trained["char"].save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        trained["byte"].save(tmp_path)
    assert load_tokenizer(tmp_path).digest == trained["char"].digest
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize(
    "name, content",
    [
        pytest.param(FILE, b"", id="empty card"),
        pytest.param(FILE, b"kind = ", id="no TOML"),
        pytest.param(FILE, b'kind = "wordpiece"\n', id="unknown kind"),
        pytest.param(FILE, b"\xff\xfe", id="bytes"),
        pytest.param(FILE, b'kind = "char"\nalphabet = ["xyz"]\n', id="alphabet of words"),
        pytest.param("tokenizer.model", b"", id="empty model"),
        pytest.param("tokenizer.model", b"garbage" * 50, id="garbage in place of a model"),
    ],
)
def test_damaged_files(trained, tmp_path, kind, name, content):
    """One line that names the folder, for every way in which the files can be damaged."""
    trained[kind].save(tmp_path)
    if not (tmp_path / name).exists():
        return  # `char` has no model file
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"the tokenizer in {tmp_path} is damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", [FILE, "tokenizer.model"])
def test_missing_files(trained, tmp_path, name):
    """The missing file is named."""
    trained["bpe"].save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"holds no tokenizer \\({name} is missing\\)"):
        load_tokenizer(tmp_path)


def test_word_classes(trained):
    """A piece that goes on a word begins inside; one with a space or a full stop does not; control symbols never do."""
    begins, ends = trained["char"].word_classes()
    ids = {trained["char"].piece(token): token for token in range(trained["char"].vocab_size)}
    assert begins[ids["a"]] and ends[ids["a"]] and not begins[ids[" "]] and not ends[ids["."]]
    begins, ends = trained["bpe"].word_classes()
    ids = {trained["bpe"].piece(token): token for token in range(trained["bpe"].vocab_size)}
    assert not begins[ids[" the"]] and ends[ids[" the"]]
    assert begins[ids["ing"]] and begins[ids["<0xC3>"]] and not begins[ids["<0x20>"]]
    begins, ends = trained["byte"].word_classes()
    word = trained["byte"].encode("naïve")  # ï is two bytes, which do not cut the word in two
    assert begins[word].all() and ends[word].all() and not begins[trained["byte"].encode(" .\n")].any()
    for tokenizer in trained.values():
        begins, ends = tokenizer.word_classes()
        assert begins.dtype == ends.dtype == np.bool_ and len(begins) == len(ends) == tokenizer.vocab_size
        assert not begins[:7].any() and not ends[:7].any()
