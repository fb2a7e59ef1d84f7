"""A tokenizer.json gives the ids that the `tokenizers` library gives, except that text is never a control symbol."""

import json
import sys

import json_models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import InputError
from minillm.fill import tokens_with_holes
from minillm.generate import TextStream
from minillm.tokenizer.base import load_tokenizer
from minillm.tokenizer.json_file import JsonTokenizer

FAMILIES = ("wordpiece", "byte level", "unigram")
PLAIN = [  # nothing here is the name of a control symbol
    pytest.param("", id="nothing"),
    pytest.param(" ", id="a space"),
    pytest.param("  two  spaces   at every place  ", id="spaces"),
    pytest.param("\tif x:\n\t\treturn\n\n\n    y\r\n", id="tabs and line ends"),
    pytest.param("Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½ Å É", id="full width, ligatures and accents"),
    pytest.param("汉字和，中文。", id="Chinese"),
    pytest.param("😀 👩‍👩‍👧 🇩🇪", id="emoji"),
    pytest.param("e\u0301a\u0308 \u200b\ufeff\u202e", id="combining and invisible marks"),
    pytest.param("\x00\x01\x1b\x7f\x85\u2028", id="control characters"),
]


@pytest.fixture(scope="module")
def backends(samples):
    """The library's own tokenizers, by family."""
    return {
        "wordpiece": json_models.wordpiece(samples),
        "byte level": json_models.byte_level(samples, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        "unigram": json_models.unigram(samples),
    }


@pytest.fixture(scope="module")
def ours(backends):
    """The same files as this project reads them."""
    names = {"wordpiece": json_models.BERT, "byte level": json_models.ROBERTA, "unigram": json_models.ROBERTA}
    return {family: JsonTokenizer(json_models.content(backends[family]), names[family]) for family in FAMILIES}


@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_the_librarys(backends, ours, family, text):
    """By themselves and in a batch; what the file says of cutting, padding and framing is not applied."""
    made = backends[family]
    made.no_truncation(), made.no_padding()
    truth = made.encode(text, add_special_tokens=False).ids
    assert ours[family].encode(text) == truth
    assert ours[family].encode_batch([text, "other", text])[::2] == [truth, truth]


def test_long_texts_stay_whole(ours, samples):
    """The WordPiece file asks for eight tokens; the tokens of a text are all of them."""
    assert len(ours["wordpiece"].encode(samples[0])) > 100


@given(
    parts=st.lists(
        st.sampled_from([*{*json_models.BERT.values(), *json_models.ROBERTA.values()}, " ", "<", "[", "▁", "a", "MASK"])
    )
)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_produces_no_control_symbol(ours, family, parts):
    """Names of control symbols are characters, also with spaces around them and among the pieces of a unigram model."""
    specials = ours[family].specials
    assert not set(ours[family].encode("".join(parts))) & (set(specials.ids()) - {specials.unk})


@pytest.mark.parametrize("family", ["wordpiece", "byte level"])
def test_names_in_text_are_read_as_their_parts(backends, ours, family):
    """They come to what the library makes of them when it is told that they are no symbols."""
    made = backends[family]
    made.no_truncation(), made.no_padding()
    made.encode_special_tokens = True
    for text in ("a [MASK] b", "[CLS]</s>", "<s> <mask>x"):
        assert ours[family].encode(text) == made.encode(text, add_special_tokens=False).ids
    made.encode_special_tokens = False


def test_a_model_that_keeps_spaces_is_refused():
    """Where a text could write a control symbol with spaces around it there is no hiding it."""
    vocabulary = {"[UNK]": 0, "[MASK]": 1, "a": 2}
    table = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    with pytest.raises(ValueError, match=r"text can produce the control symbol '\[MASK\]'"):
        JsonTokenizer(json.dumps(table).encode(), {"unk": "[UNK]", "mask": "[MASK]"})


@pytest.mark.parametrize("family", FAMILIES)
def test_places_cover_the_text(ours, family):
    """In order, without gaps, and each token's text is among its characters as far as it was not rewritten."""
    text = "  The quick  brown fox 汉字 😀 e\u0301.  "
    ids, spans = ours[family].encode_with_offsets(text)
    assert ids == ours[family].encode(text) and len(ids) == len(spans)
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    for (start, stop), (following, _) in zip(spans, spans[1:], strict=False):
        assert start <= following <= stop
    first = [token for token, (start, stop) in zip(ids, spans, strict=True) if start <= text.index("quick") < stop]
    assert len(first) == 1 and ours[family].piece(first[0]).strip().startswith("q")


def test_bytes_of_a_character_share_its_place(ours):
    """Four bytes of an emoji that has no piece."""
    ids, spans = ours["byte level"].encode_with_offsets("a😀b")
    assert len(ids) == 6 and spans == [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]


def test_decoding(ours):
    """Byte level gives the text back; WordPiece words with single spaces; control symbols are left out."""
    text = "\tThe  cat, 汉字 </s>\n"
    tokenizer = ours["byte level"]
    assert tokenizer.decode([tokenizer.specials.bos, *tokenizer.encode(text), tokenizer.specials.eos]) == text
    tokenizer = ours["wordpiece"]
    around = [tokenizer.specials.cls, *tokenizer.encode("The   Cat sat."), tokenizer.specials.sep]
    assert tokenizer.decode(around) == "the cat sat."


def test_pieces_are_for_people(ours):
    """GPT-2's letters for bytes are undone, a part of a character shows its bytes, symbols their own names."""
    tokenizer = ours["byte level"]
    assert [tokenizer.piece(token) for token in tokenizer.encode(" the")] == [" the"]
    assert [tokenizer.piece(token) for token in tokenizer.encode("漢")] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert tokenizer.piece(tokenizer.specials.mask) == "<mask>"
    assert ours["wordpiece"].piece(ours["wordpiece"].specials.mask) == "[MASK]"


def test_word_classes(ours):
    """A WordPiece piece begins inside a word when ## says so; a byte-level one when no space does."""
    tokenizer = ours["wordpiece"]
    begins, ends = tokenizer.word_classes()
    inside = [token for token in range(tokenizer.vocab_size) if tokenizer.piece(token).startswith("##")]
    the = tokenizer.encode("the")[0]
    assert begins[[t for t in inside if tokenizer.piece(t)[2:].isalnum()]].all() and not begins[the] and ends[the]
    tokenizer = ours["byte level"]
    begins, ends = tokenizer.word_classes()
    assert not begins[tokenizer.encode(" the")[0]] and begins[tokenizer.encode("the")[0]]
    assert begins[tokenizer.encode("漢")].all()
    for each in ours.values():
        assert not each.word_classes()[0][each.specials.ids()].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(ours, family, tmp_path):
    """The file stays byte for byte as it came, the names of the symbols beside it."""
    ours[family].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == ours[family].digest and loaded.specials == ours[family].specials
    assert (tmp_path / "tokenizer.json").read_bytes() == ours[family].files()["tokenizer.json"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no model"),
        pytest.param(b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', id="no tokens"),
        pytest.param(b'{"model": {"type": "WordPiece", "vocab": {"[UNK]": -1}, "unk_token": "[UNK]"}}', id="negative"),
        pytest.param(b'{"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}', id="no unknown token"),
        pytest.param(b'{"model": {"type": "Magic", "vocab": {"[UNK]": 0}}}', id="unknown model"),
        pytest.param(b"\xff\xfe", id="bytes"),
    ],
)
def test_damaged_files(ours, tmp_path, damage):
    """One line that names the folder."""
    ours["wordpiece"].save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(damage)
    with pytest.raises(InputError, match=f"the tokenizer in {tmp_path} is damaged"):
        load_tokenizer(tmp_path)


def test_a_symbol_that_is_not_there(backends):
    """The name and its role are in the message."""
    with pytest.raises(ValueError, match="no token '<mask>', which is to be its mask symbol"):
        JsonTokenizer(json_models.content(backends["wordpiece"]), {"mask": "<mask>"})


def test_without_the_library(ours, tmp_path, monkeypatch):
    """How to install it is said."""
    ours["wordpiece"].save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'minillm\[hf\]'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("family, before", [("wordpiece", "the"), ("byte level", " the")])
def test_holes(ours, family, before):
    """`fill` puts the symbol where a text says [MASK], whatever the symbol is called, and the space before it away."""
    tokenizer = ours[family]
    tokens, holes = tokens_with_holes(tokenizer, f"{before} [MASK] sat")
    specials = tokenizer.specials
    inside = [*tokenizer.encode(before), specials.mask, *tokenizer.encode(" sat")]
    around = [specials.cls, *inside, specials.sep] if family == "wordpiece" else inside  # as the file's frame is
    assert tokens == around and [tokens[hole] for hole in holes] == [specials.mask]


def test_text_is_streamed(ours):
    """Token by token, the pieces add up to the text, and no character is cut."""
    tokenizer = ours["byte level"]
    text = " the cat 漢😀 sat"
    stream = TextStream(tokenizer, [tokenizer.specials.bos])
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join([*shown, stream.finish()]) == text and "\ufffd" not in "".join(shown)
