"""The exported tokenizer gives this project's ids in transformers, and comes back as it was."""

import dataclasses
import json
import random

import json_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minillm.checkpoint.hf.tokenizer_files import tokenizer_files
from minillm.model.config import ModelConfig
from minillm.tokenizer.base import NAMES
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.hf import import_tokenizer
from minillm.tokenizer.training import train_tokenizer

KINDS = ("bpe", "unigram", "byte", "char")
DECODER = ModelConfig(vocab_size=600, width=8, num_heads=1, context=64)
MASKED = ModelConfig(kind="encoder", vocab_size=600, width=8, num_heads=1, context=64, head="transform", token_types=2)
CLASSIFIER = ModelConfig(kind="encoder", vocab_size=600, width=8, num_heads=1, context=64, head="none")
ODD = [
    "",
    " ",
    "  two  spaces   at every place  ",
    "\tif x:\n\t\treturn\n\n\n    y\r\n",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½ Å",
    "汉字和，中文。",
    "😀 👩‍👩‍👧 🇩🇪",
    "e\u0301a\u0308 \u200b\ufeff\u202e",
    "\x00\x01\x1b\x7f\x85\u2028",
    "</s> <s> <unk> <pad> [MASK] [CLS] [SEP] <0x0A>",
    "\u2581\u2581 the\u2581cat",
]


@pytest.fixture(scope="module")
def texts(request):
    """Prose, in which `<` and `[` do not occur, so that names of control symbols have unknown characters."""
    folder = request.config.rootpath / "data/samples"
    return [(folder / name).read_text() for name in ("letters.txt", "tales.txt", "recipes.txt")]


@pytest.fixture(scope="module")
def trained(texts):
    """A tokenizer of each kind, and a unigram one whose text has the names' characters."""
    made = {kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=600), texts) for kind in KINDS}
    marked = [*texts, "</a> <b> [C] [M] <0x0> <0xA1> SEPCLSMASK unk pad s 23456789BDF\n" * 40]
    return made | {"marked": train_tokenizer(TokenizerConfig(kind="unigram", vocab_size=600), marked)}


def written(tokenizer, model, folder):
    """Write the files and return transformers' tokenizer for them."""
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(tokenizer, model).items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory):
    """transformers' tokenizer for each kind, beside a decoder."""
    return {kind: written(made, DECODER, tmp_path_factory.mktemp(kind)) for kind, made in trained.items()}


def ids(theirs, text, **options):
    """Return transformers' ids without the frame."""
    return theirs(text, add_special_tokens=False, **options)["input_ids"]


@pytest.mark.parametrize("kind", [*KINDS, "marked"])
def test_ids_of_odd_strings(trained, theirs, kind):
    """Spaces, tabs, full width, Chinese, emoji, marks, control characters, NUL and names of control symbols."""
    for text in ODD:
        assert ids(theirs[kind], text) == trained[kind].encode(text), repr(text)


@pytest.mark.parametrize("kind", [*KINDS, "marked"])
def test_ids_of_whole_texts(trained, theirs, kind, texts):
    """Long ones, with every piece in use."""
    for text in texts:
        assert ids(theirs[kind], text, verbose=False) == trained[kind].encode(text)


@settings(max_examples=300)
@given(
    text=st.text(max_size=40)
    | st.lists(
        st.sampled_from([*NAMES, "<0x0A>", "<", "0x", " ", "  ", "aa", "ab", "he", "th", "--", "\n", "é"]), max_size=16
    ).map("".join)
)
@pytest.mark.parametrize("kind", [*KINDS, "marked"])
def test_ids_of_any_text(trained, theirs, kind, text):
    """All of Unicode, runs of the same letters, whose pieces overlap, and control symbols' names between them."""
    assert ids(theirs[kind], text) == trained[kind].encode(text)


def test_merges_keep_the_order_of_scores_on_repeated_text():
    """Pieces of one letter and of two letters in turn: many ways to make each, and the leftmost pair comes first."""
    rng = random.Random(3)
    texts = ["".join(rng.choice("ab") * rng.randint(1, 4) for _ in range(40)) + "\n" for _ in range(200)]
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=420), texts)
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_str(tokenizer_files(tokenizer, DECODER)["tokenizer.json"].decode())
    for text in texts:
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte"])
def test_decoding(trained, theirs, kind):
    """transformers gives the text back, control symbols left out."""
    for text in ODD[:-1]:  # U+2581 comes back as a space
        assert theirs[kind].decode([1, *trained[kind].encode(text), 2], skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_space_that_has_no_piece_comes_back(kind, tmp_path):
    """Of a text without spaces none is learnt: one goes as bytes."""
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), ["abab\nbabb\n" * 9])
    there = written(tokenizer, DECODER, tmp_path / kind)
    assert ids(there, "ab a") == tokenizer.encode("ab a")
    assert there.decode(tokenizer.encode("ab a")) == "ab a"


@pytest.mark.parametrize("kind", KINDS)
def test_frames(trained, theirs, kind, tmp_path):
    """A decoder's text begins with <s>, and one that is not to go on ends with </s>; an encoder's stands between [CLS]
    and [SEP], and a pair has two types.
    """
    a, b = (trained[kind].encode(text) for text in ("the cat", "a dog"))
    assert theirs[kind]("the cat")["input_ids"] == [1, *a]
    reader = written(trained[kind], dataclasses.replace(DECODER, head="none"), tmp_path / "reader")
    assert reader("the cat")["input_ids"] == [1, *a, 2]
    assert reader("the cat", "a dog")["input_ids"] == [1, *a, 2, *b, 2]
    encoder = written(trained[kind], MASKED, tmp_path / "masked")("the cat", "a dog")
    assert encoder["input_ids"] == [5, *a, 6, *b, 6]
    assert encoder["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert "token_type_ids" not in written(trained[kind], CLASSIFIER, tmp_path / "classifier")("the cat", "a dog")


@pytest.mark.parametrize("kind", KINDS)
def test_control_symbols_in_text(trained, theirs, kind, tmp_path):
    """Characters, except where the fill-mask pipeline looks for [MASK]; and there too when one says so."""
    text = "the[MASK] cat</s>"
    plain = trained[kind].encode(text)
    assert ids(theirs[kind], text) == plain
    assert ids(written(trained[kind], CLASSIFIER, tmp_path / "classifier"), text) == plain
    masked = written(trained[kind], MASKED, tmp_path / "masked")
    encode = trained[kind].encode
    assert ids(masked, text) == [*encode("the"), 4, *encode(" cat"), 2]
    assert ids(masked, text, split_special_tokens=True) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_takes_the_space_before_it(trained, kind, tmp_path):
    """As `minillm fill` does: the hidden piece carries its space."""
    masked = written(trained[kind], MASKED, tmp_path)
    encode = trained[kind].encode
    assert ids(masked, "the [MASK] sat") == [*encode("the"), 4, *encode(" sat")]


@pytest.mark.parametrize("kind", KINDS)
def test_symbols_and_length(theirs, kind):
    """Every role has its symbol, no token is added, and texts above the context are known to be too long."""
    tokenizer = theirs[kind]
    roles = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == list(range(7))
    assert tokenizer.model_max_length == 64 and tokenizer.padding_side == "left"


@pytest.mark.parametrize("kind", KINDS)
def test_back_again(trained, kind, tmp_path, texts):
    """What was exported is imported with the same ids and symbols; BPE comes back as what it was."""
    written(trained[kind], DECODER, tmp_path)
    back = import_tokenizer(tmp_path)
    assert back is not None and back.specials == trained[kind].specials and back.vocab_size == trained[kind].vocab_size
    for text in [*ODD, *texts]:
        assert back.encode(text) == trained[kind].encode(text)
    assert back.kind == ("bpe" if kind == "bpe" else "json")


def test_an_old_vocabulary_goes_out_with_its_frame(minilm, tmp_path):
    """vocab.txt becomes a tokenizer.json that puts [CLS] and [SEP] around a text, and types to a pair."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    there = written(import_tokenizer(tmp_path / "old"), MASKED, tmp_path / "new")
    before = AutoTokenizer.from_pretrained(minilm)
    assert dict(there("Fine [MASK].")) == dict(before("Fine [MASK]."))
    assert dict(there("Fine", "a film")) == dict(before("Fine", "a film"))


@pytest.mark.parametrize("framed", [True, False], ids=["RoBERTa", "GPT-2"])
def test_old_merges_go_out_with_their_frame(framed, texts, tmp_path):
    """<s> and </s> around a text, twice between a pair, as RoBERTa has it; GPT-2 has nothing around."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if framed else ["<|endoftext|>"]
    model = json.loads(json_models.byte_level(texts, special).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    tokenizer = import_tokenizer(tmp_path)
    a, b = tokenizer.encode("Fine"), tokenizer.encode("a film")
    there = written(tokenizer, CLASSIFIER, tmp_path / "new")
    assert there("Fine", "a film")["input_ids"] == ([0, *a, 2, 2, *b, 2] if framed else a + b)


def test_an_imported_one_goes_out_as_it_came(minilm, tmp_path):
    """Byte for byte, and transformers gives the ids that it gave before."""
    tokenizer = import_tokenizer(minilm)
    again = written(tokenizer, MASKED, tmp_path)
    before = AutoTokenizer.from_pretrained(minilm)
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
    for text in [*ODD, "The [MASK] sat."]:
        assert dict(again(text, verbose=False)) == dict(before(text, verbose=False))
