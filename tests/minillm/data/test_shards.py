"""Token shards: the same whatever the parts, whole or not there, kept when nothing changed, made in bounded memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm.data import corpora, shards
from minillm.data.corpora import open_corpus
from minillm.data.shards import TokenStore, open_prepared, prepare, remove_leftovers
from minillm.errors import InputError
from minillm.tokenizer.byte import FIRST, ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

ROOT = Path(__file__).parents[3]
SAMPLES = str(ROOT / "data/samples")
BYTES = ByteTokenizer()
BOS, EOS = BYTES.specials.bos, BYTES.specials.eos


def contents(folder):
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_with_their_bounds(tmp_path):
    """A document is what its bounds enclose, with the prefix before and the suffix after it; bytes are the text's."""
    corpus = open_corpus(SAMPLES)
    assert prepare(corpus, BYTES, tmp_path, prefix=[BOS], suffix=[EOS, EOS])
    for split in ("train", "valid"):
        store, documents = TokenStore.open(tmp_path, split), list(corpus.documents(split))
        assert len(store.bounds) == len(documents) + 1 and store.num_bytes == corpus.num_bytes(split)
        for number, document in enumerate(documents):
            ids = store.tokens[store.bounds[number] : store.bounds[number + 1]].tolist()
            assert ids == [BOS, *BYTES.encode(document), EOS, EOS]


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_parts_and_batches_leave_no_trace(tmp_path, monkeypatch, kind):
    """A text read in parts of 300 characters, 700 at a time, gives the files of a text read at once."""
    corpus = open_corpus(SAMPLES)
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=500), corpus.documents("train"))
    prepare(corpus, tokenizer, tmp_path / "whole", prefix=[1], suffix=[2])
    monkeypatch.setattr(corpora, "PART", 1000)
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 2500)
    told = []
    prepare(
        open_corpus(SAMPLES),
        tokenizer,
        tmp_path / "parts",
        prefix=[1],
        suffix=[2],
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert [done for done, _ in told] == sorted(done for done, _ in told) and len(told) > 10
    assert told[-1] == (41_287, 41_287)


def test_kept_when_nothing_changed(tmp_path):
    """Made once; anew when one thing is another: the text, the split, the tokenizer, the prefix or the suffix."""
    (tmp_path / "text").mkdir()
    text = tmp_path / "text/a.txt"
    text.write_text("a text to be cut in two, now and again")
    chars, more = (CharacterTokenizer(text.read_text() + letters) for letters in ("", "!"))  # of one kind
    case = {"valid_fraction": 0.1, "tokenizer": BYTES, "prefix": (), "suffix": ()}
    changes = [{}, {"prefix": [BOS]}, {"suffix": [EOS]}, {"tokenizer": chars}, {"tokenizer": more}]
    for change in (*changes, {"valid_fraction": 0.3}, {"text": "a text to be cut in two, now or again"}):
        text.write_text(change.pop("text", text.read_text()))
        case |= change
        given = dict(case)
        corpus = open_corpus(str(text), valid_fraction=given.pop("valid_fraction"))
        tokenizer = given.pop("tokenizer")
        assert prepare(corpus, tokenizer, tmp_path / "shards", **given), change
        assert not prepare(corpus, tokenizer, tmp_path / "shards", **given)


def test_only_the_splits_that_are_needed(tmp_path):
    """Held-out text alone makes no training shards."""
    prepare(open_corpus(SAMPLES), BYTES, tmp_path, splits=("valid",))
    assert contents(tmp_path).keys() == {"valid.tokens", "valid.bounds.npy", "meta.json"}
    with pytest.raises(InputError, match="not whole"):
        TokenStore.open(tmp_path, "train")


def test_a_document_without_a_token_is_none(tmp_path):
    """As of an imported tokenizer that leaves nothing of it and sets nothing around it."""

    class Letters(ByteTokenizer):
        def encode(self, text):
            return super().encode("".join(filter(str.isalpha, text)))

    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number:02d}.txt").write_text("0123" if number % 2 else f"some text, {number}")
    prepare(open_corpus(str(tmp_path / "texts"), valid_fraction=0.5), Letters(), tmp_path / "shards")
    for split in ("train", "valid"):
        store = TokenStore.open(tmp_path / "shards", split)
        assert len(store.bounds) > 2 and (np.diff(store.bounds) == len("sometext")).all()


@pytest.mark.parametrize("size, dtype", [(65_536, np.uint16), (65_537, np.uint32)])
def test_width_of_a_token(tmp_path, size, dtype):
    """Two bytes as long as the largest id fits."""

    class Large(ByteTokenizer):
        vocab_size = size

        def __init__(self):
            super().__init__()
            self.vocab_size = size

        def encode(self, text):
            return [size - 1] * len(text)

    prepare(open_corpus(SAMPLES), Large(), tmp_path)
    tokens = TokenStore.open(tmp_path, "valid").tokens
    assert tokens.dtype == dtype and set(tokens.tolist()) == {size - 1}
    assert isinstance(tokens, np.memmap)


DAMAGE = {
    "meta is missing": lambda folder: (folder / "meta.json").unlink(),
    "meta is empty": lambda folder: (folder / "meta.json").write_text(""),
    "meta is a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta has no end": lambda folder: (folder / "meta.json").write_text("[" * 100_000),
    "meta is bytes": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe"),
    "meta lacks the split": lambda folder: (folder / "meta.json").write_text('{"dtype": "<u2"}'),
    "meta has another type": lambda folder: (folder / "meta.json").write_text(
        json.dumps(json.loads((folder / "meta.json").read_text()) | {"dtype": "words"})
    ),
    "meta has a type of no size": lambda folder: (folder / "meta.json").write_text(
        json.dumps(json.loads((folder / "meta.json").read_text()) | {"dtype": []})
    ),
    "meta lacks the bytes": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"bytes"', '"letters"')
    ),
    "meta has bytes of another type": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"bytes": ', '"bytes": 0.5e')
    ),
    "tokens are missing": lambda folder: (folder / "train.tokens").unlink(),
    "tokens are empty": lambda folder: (folder / "train.tokens").write_bytes(b""),
    "tokens are cut": lambda folder: os.truncate(folder / "train.tokens", 1001),
    "tokens are short": lambda folder: os.truncate(folder / "train.tokens", 1000),
    "bounds are missing": lambda folder: (folder / "train.bounds.npy").unlink(),
    "bounds are empty": lambda folder: (folder / "train.bounds.npy").write_bytes(b""),
    "bounds are garbage": lambda folder: (folder / "train.bounds.npy").write_bytes(b"garbage" * 30),
    "bounds are a number": lambda folder: np.save(folder / "train.bounds.npy", np.array(3)),
    "bounds are pickled": lambda folder: np.save(folder / "train.bounds.npy", np.array([{}]), allow_pickle=True),
    "bounds end early": lambda folder: np.save(folder / "train.bounds.npy", np.arange(8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_named_and_made_anew(tmp_path, damage):
    """Reading them is one clear line; preparing again mends them."""
    corpus = open_corpus(SAMPLES)
    prepare(corpus, BYTES, tmp_path)
    whole = contents(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(InputError, match="prepare|remove the folder"):
        TokenStore.open(tmp_path, "train")
    assert prepare(corpus, BYTES, tmp_path)
    assert contents(tmp_path) == whole


def test_a_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    """A full disk while other shards are written: the old ones are whole, and no draft takes room."""
    prepare(open_corpus(SAMPLES), BYTES, tmp_path)
    before = contents(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.np, "save", full)
    with pytest.raises(OSError, match="No space"):
        prepare(open_corpus(SAMPLES), BYTES, tmp_path, suffix=[EOS])
    assert contents(tmp_path) == before


def test_a_text_that_turns_out_not_to_be_text_leaves_nothing(tmp_path):
    """Bytes that are no UTF-8 deep inside a file: the error names them, and the folder is empty."""
    (tmp_path / "a.txt").write_bytes(b"good line\n" * 300_000 + b"\xff")
    with pytest.raises(InputError, match="byte 3000000"):
        prepare(open_corpus(str(tmp_path / "a.txt")), BYTES, tmp_path / "shards")
    assert not list(tmp_path.glob("shards/*"))


def test_who_reads_old_shards_keeps_them(tmp_path):
    """Two runs that share a folder and want different shards do not write into each other's."""
    prepare(open_corpus(SAMPLES), BYTES, tmp_path)
    store = TokenStore.open(tmp_path, "valid")
    prepare(open_corpus(SAMPLES), BYTES, tmp_path, prefix=[BOS] * 5)
    assert BYTES.decode(store.tokens.tolist()) == (ROOT / "data/samples/letters.txt").read_text()
    assert int(store.tokens[0]) == FIRST + ord("G")


def test_two_that_write_at_once_do_not_meet_in_a_file(tmp_path):
    """One begins and ends while the other is encoding: the folder then has what the other wanted, and no draft."""

    class Interrupted(ByteTokenizer):
        def encode_batch(self, texts):
            prepare(open_corpus(SAMPLES), BYTES, tmp_path, suffix=[EOS])
            return super().encode_batch(texts)

    assert prepare(open_corpus(SAMPLES), Interrupted(), tmp_path, prefix=[BOS])
    stores = open_prepared(open_corpus(SAMPLES), BYTES, tmp_path, prefix=[BOS])
    assert stores is not None and stores[1].tokens[0] == BOS and stores[1].tokens[-1] != EOS
    assert contents(tmp_path).keys() == {
        f"{split}.{part}" for split in ("train", "valid") for part in ("tokens", "bounds.npy")
    } | {"meta.json"}


def test_shards_that_are_replaced_while_they_are_opened_are_not_taken(tmp_path, monkeypatch):
    """As many tokens, the same facts before and after: the file that says so is another one."""
    corpus, open_split = open_corpus(SAMPLES), TokenStore.open
    prepare(corpus, BYTES, tmp_path, prefix=[BOS])

    def replaced(folder, split):
        monkeypatch.setattr(TokenStore, "open", open_split)
        for prefix in ([EOS], [BOS]):
            prepare(corpus, BYTES, tmp_path, prefix=prefix)
        return open_split(folder, split)

    monkeypatch.setattr(TokenStore, "open", replaced)
    assert open_prepared(corpus, BYTES, tmp_path, prefix=[BOS]) is None
    assert open_prepared(corpus, BYTES, tmp_path, prefix=[BOS]) is not None
    assert open_prepared(corpus, BYTES, tmp_path, prefix=[EOS]) is None


def test_what_a_killed_writer_left_goes(tmp_path):
    prepare(open_corpus(SAMPLES), BYTES, tmp_path)
    before = contents(tmp_path)
    (tmp_path / ".shards-a1b2c3").mkdir()
    (tmp_path / ".shards-a1b2c3/train.tokens").write_bytes(bytes(99))
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == before


MEASURE = """
import resource, sys
from pathlib import Path
from minillm.data.corpora import open_corpus
from minillm.data.shards import prepare
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

folder = Path(sys.argv[1])
corpus = open_corpus(str(folder / "large.txt"))
config = TokenizerConfig(kind=sys.argv[2], vocab_size=400, max_training_bytes=200_000)
tokenizer = train_tokenizer(config, corpus.texts("train"))
prepare(open_corpus(str(folder / "small.txt")), tokenizer, folder / "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(corpus, tokenizer, folder / "large")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("kind", ["byte", pytest.param("bpe", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_text(tmp_path, kind):
    """50 MB in one file raise the peak by less than the text, after 10 MB have: training, encoding and writing."""
    text = "".join((Path(SAMPLES) / name).read_text() for name in ("tales.txt", "letters.txt"))
    for name, size in (("small.txt", 10_000_000), ("large.txt", 50_000_000)):
        with (tmp_path / name).open("w") as stream:
            for _ in range(size // len(text)):
                stream.write(text)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), kind],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, in KiB elsewhere
    before, after = (int(word) * unit for word in done.stdout.split())
    assert after - before < 20_000_000, f"{before:,} -> {after:,} bytes"
