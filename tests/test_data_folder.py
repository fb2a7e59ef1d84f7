"""What data/README.md and the pages of its corpora state, measured again."""

import hashlib
import re
from pathlib import Path

from minillm.data.corpora import open_corpus

DATA = Path(__file__).parents[1] / "data"
SAMPLES = DATA / "samples"
ROW = re.compile(
    r"^\| `(?P<name>[\w.-]+\.txt)` \|[^|]*\| (?P<size>[\d,]+) \| `(?P<digest>[0-9a-f]{64})` \|$", re.MULTILINE
)


def number(text):
    """Return the integer in a text such as 41,287."""
    return int(text.replace(",", ""))


def test_sizes_and_digests_of_the_samples():
    """The table lists every file of the folder, with its bytes and SHA-256; nothing else lies there."""
    listed = {
        row["name"]: (number(row["size"]), row["digest"]) for row in ROW.finditer((DATA / "README.md").read_text())
    }
    found = {path.name: path.read_bytes() for path in SAMPLES.iterdir()}
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}


def test_split_of_the_samples():
    """The page's total, split and digest of the corpus are those of `--data.input data/samples`."""
    page = (DATA / "README.md").read_text()
    corpus = open_corpus(str(SAMPLES))
    assert list(corpus.documents("valid")) == [(SAMPLES / "letters.txt").read_text()]
    assert corpus.num_documents("train") == 7
    train, valid = corpus.num_bytes("train"), corpus.num_bytes("valid")
    for figure in (f"{train + valid:,} bytes", f"({valid:,} bytes)", f"({train:,} bytes)", f"`{corpus.digest}`"):
        assert figure in page
    assert "".join(corpus.documents("train")).isascii()
