"""Corpora: what counts as text, how it is split, that nothing leaks, and that a digest stands for one text."""

import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.data import corpora
from minillm.data.corpora import Against, Corpus, Source, open_corpus, read_parts
from minillm.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), min_size=20, max_size=200)
SPLITS = ("train", "valid")


def corpus_of(texts, fraction=0.1):
    """A corpus of texts by name, each in parts of seven characters."""
    sources = [
        Source(name, lambda text=text: iter([text[at : at + 7] for at in range(0, len(text), 7)]))
        for name, text in texts.items()
    ]
    return Corpus("some", sources, fraction)


@given(text=TEXT, fraction=st.floats(0.06, 0.94))
def test_one_text_is_cut_once_and_nothing_is_lost(text, fraction):
    """The two splits end to end are the text; the cut is at the stated share of the characters; bytes are counted."""
    corpus = corpus_of({"a": text}, fraction)
    train, valid = ("".join(corpus.documents(split)) for split in SPLITS)
    assert train + valid == text
    assert len(train) == int(len(text) * (1 - fraction))
    assert [corpus.num_bytes(split) for split in SPLITS] == [len(train.encode()), len(valid.encode())]
    assert [corpus.num_documents(split) for split in SPLITS] == [1, 1]


@given(
    texts=st.dictionaries(st.text("abcdef/", min_size=1), TEXT, min_size=2, max_size=30), fraction=st.floats(0.01, 0.99)
)
def test_several_files_lie_whole_on_one_side(texts, fraction):
    """Every document is in exactly one split, whole; both have one at least; counts and bytes are right."""
    corpus = corpus_of(texts, fraction)
    train, valid = (list(corpus.documents(split)) for split in SPLITS)
    assert sorted(train + valid) == sorted(texts.values())
    assert train and valid
    assert [corpus.num_documents(split) for split in SPLITS] == [len(train), len(valid)]
    assert [corpus.num_bytes(split) for split in SPLITS] == [sum(len(t.encode()) for t in s) for s in (train, valid)]


def test_a_new_file_moves_no_other():
    """The side of a file depends on its name alone, as long as both sides have one anyway."""
    texts = {f"{number}.txt": f"text {number}" for number in range(60)}
    before = set(corpus_of(texts).documents("valid"))
    after = set(corpus_of(texts | {"new.txt": "a new one"}).documents("valid"))
    assert len(before) > 1 and after - {"a new one"} == before


def test_digest_stands_for_names_texts_and_share():
    """Each of them changes it; how the text is cut into parts does not."""
    texts = {"a": "one text that is long", "b": "another text that is long"}
    same = Corpus("other name", [Source(name, lambda text=text: iter([text])) for name, text in texts.items()], 0.1)
    others = [
        corpus_of(texts | {"a": "one text that is Long"}),
        corpus_of({"a": texts["b"], "b": texts["a"]}),
        corpus_of({"a": texts["a"], "c": texts["b"]}),
        corpus_of({"a": texts["a"]}),
        corpus_of({"a": f"{texts['a']}b\n{texts['b']}"}),  # the second file's name and text within the first
        corpus_of(texts, 0.2),
    ]
    digests = [corpus.digest for corpus in (corpus_of(texts), *others)]
    assert same.digest == digests[0]
    assert len(set(digests)) == len(digests)


def test_against_trains_on_one_and_holds_out_all_of_another():
    """Training text is the first corpus's training split; the second is held out whole, its own split undone."""
    own, other = corpus_of({"a": "a text to learn from, cut at nine tenths"}), corpus_of({"b": "asked", "c": "too"})
    both = Against(own, other)
    assert list(both.documents("train")) == list(own.documents("train"))
    assert list(both.documents("valid")) == ["asked", "too"]
    assert both.num_bytes("train") == own.num_bytes("train") and both.num_bytes("valid") == 8
    assert [both.num_documents(split) for split in SPLITS] == [1, 2]
    assert len({both.digest, own.digest, other.digest}) == 3


def test_folder(tmp_path):
    """Text files of sub-folders are found in the order of their paths; hidden, empty and other ones are left out."""
    for name in ("b.txt", "a/z.MD", ".hidden.txt", ".git/c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "empty.txt").touch()
    corpus = open_corpus(str(tmp_path))
    assert sorted(text for split in SPLITS for text in corpus.documents(split)) == ["text of a/z.MD", "text of b.txt"]
    assert [corpus.num_documents(split) for split in SPLITS] == [1, 1]


def test_a_file_of_several_names_is_one_document(tmp_path):
    """Under each name it could be on another side, and the held-out text would be trained on."""
    (tmp_path / "b.txt").write_text("one\n")
    (tmp_path / "c.txt").write_text("two\n")
    for name in ("a.txt", "d.txt"):
        (tmp_path / name).symlink_to("b.txt")
    os.link(tmp_path / "c.txt", tmp_path / "e.md")
    (tmp_path / "nothing.txt").symlink_to("gone.txt")
    corpus = open_corpus(str(tmp_path), valid_fraction=0.5)
    assert sorted(text for split in SPLITS for text in corpus.documents(split)) == ["one\n", "two\n"]


def test_links_to_folders_are_left_out_and_named(tmp_path):
    for folder in ("texts", "more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one two three\n")
    assert open_corpus(str(tmp_path / "texts")).notice == ""
    (tmp_path / "texts/linked").symlink_to("../more")
    corpus = open_corpus(str(tmp_path / "texts"))
    assert corpus.num_bytes("train") + corpus.num_bytes("valid") == 14
    assert corpus.notice.startswith(f"{tmp_path / 'texts/linked'} is a link to a folder, and left out; give")
    (tmp_path / "texts/a.txt").unlink()
    with pytest.raises(InputError, match="holds no .* text in it: .*/linked is a link to a folder, and left out; give"):
        open_corpus(str(tmp_path / "texts"))


def test_a_folder_with_one_text_is_cut_like_a_file(tmp_path):
    """An empty neighbour does not make two documents of it."""
    (tmp_path / "a.txt").write_text("0123456789")
    (tmp_path / "b.txt").touch()
    corpus = open_corpus(str(tmp_path))
    assert [list(corpus.documents(split)) for split in SPLITS] == [["012345678"], ["9"]]


@pytest.mark.parametrize(
    "name, content, hint",
    [
        pytest.param("a.txt", "", "a.txt is empty", id="empty"),
        pytest.param("a.txt", "x", "too short", id="one character"),
        pytest.param("a.csv", "x,y", "neither a .txt nor a .md", id="suffix"),
        pytest.param("folder/a.csv", "x,y", "no .txt or .md", id="folder"),
    ],
)
def test_what_is_no_corpus(tmp_path, name, content, hint):
    """The line names the file or folder and what is wrong."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=hint):
        open_corpus(str(path.parent if path.parent != tmp_path else path)).num_bytes("train")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("stdlib-dcs", "stdlib-docs"),
        ("no/such.txt", "no/such.txt"),
        ("wikipedia", "no text at wikipedia"),
        ("", "empty name; give stdlib-docs, stdlib-code, a .txt"),
    ],
)
def test_a_name_that_is_nothing(name, hint):
    """The nearest embedded corpus is named; a path is not taken for one, nor no name for the working directory."""
    with pytest.raises(InputError, match=hint):
        open_corpus(name)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_out_of_range(tmp_path, fraction):
    """Nothing or everything cannot be held out."""
    with pytest.raises(InputError, match="above 0 and below 1"):
        open_corpus("stdlib-docs", valid_fraction=fraction)


@pytest.mark.parametrize("size", [1, 3, 4, 16, 1000])
def test_parts_end_with_lines_and_lose_nothing(tmp_path, monkeypatch, size):
    """Whatever the size of a part: end to end they are the file, line ends as they are, cut after line ends."""
    monkeypatch.setattr(corpora, "PART", size)
    text = "one\r\ntwo\n\nthree \u6f22\u5b57 \U0001f600\nfour\r\n" * 3 + "the end"
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = list(read_parts(tmp_path / "a.txt"))
    assert "".join(parts) == text
    if size >= 16:  # a line that is longer than a part is cut inside
        assert all(part.endswith("\n") for part in parts[:-1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(head=st.text(st.characters(codec="utf-8"), max_size=20), tail=st.binary(max_size=6), size=st.integers(1, 9))
def test_the_first_bad_byte_is_named(tmp_path, head, tail, size):
    """The offset is that of the first byte that is no UTF-8, wherever parts are cut."""
    data = head.encode() + b"\xff" + tail
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "PART", size)
        with pytest.raises(InputError, match=rf"not UTF-8 text: byte {len(head.encode())} "):
            list(read_parts(tmp_path / "a.txt"))


def test_a_file_that_ends_inside_a_character(tmp_path):
    """A cut download: the file's length is named, or where the character begins."""
    (tmp_path / "a.txt").write_bytes("good é".encode()[:-1])
    with pytest.raises(InputError, match=r"byte [56] "):
        list(read_parts(tmp_path / "a.txt"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    """What some editors put before the first letter does not reach the model."""
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo\n" * 9, encoding="utf-8")
    assert next(open_corpus(str(tmp_path / "a.txt")).texts("train")).startswith("one")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take such names")
def test_a_name_that_is_not_utf8(tmp_path):
    """A file whose name the digest could not hold is named, by itself and in a folder."""
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text("one\n" * 9)
    for name in (file, tmp_path):
        with pytest.raises(InputError, match=r"caf.udce9.txt' is not UTF-8; rename it"):
            open_corpus(str(name))
