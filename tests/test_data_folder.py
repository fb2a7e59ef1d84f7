"""What data/README.md and the pages of its corpora state, measured again."""

import hashlib
import math
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm.anchors import causal_anchors
from minillm.data.corpora import open_corpus
from minillm.ngram import NGram

DATA = Path(__file__).parents[1] / "data"
SHAKESPEARE = DATA / "tinyshakespeare/tinyshakespeare.txt"
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


def row_of_this_python(name):
    """Return (version, train documents, valid documents, train bytes, valid bytes, digest), or None if not listed."""
    for line in (DATA / name / "README.md").read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith(f"{sys.version_info.major}.{sys.version_info.minor}."):
            return cells[0], *map(number, cells[1:5]), cells[5]
    return None


@pytest.mark.parametrize("name", ["stdlib-docs", "stdlib-code"])
def test_figures_of_the_standard_library(name):
    """For a Python that the page lists: exact where the digest is the listed one, else within what the page allows."""
    row = row_of_this_python(name)
    if row is None:
        pytest.skip(f"the page lists no Python {sys.version_info.major}.{sys.version_info.minor}")
    version, *listed, digest = row
    corpus = open_corpus(name)
    found = [corpus.num_documents("train"), corpus.num_documents("valid")]
    found += [corpus.num_bytes("train"), corpus.num_bytes("valid")]
    if corpus.digest == digest:
        assert found == listed
    else:
        tolerance = (
            0.01 if platform.python_version() == version else 0.1
        )  # a distribution's own patches; other releases
        assert sum(found[2:]) == pytest.approx(sum(listed[2:]), rel=tolerance)


def near(figures):
    """Return figures that allow for their rounding, and for another release of xz."""
    return pytest.approx(figures, abs=0.002)


def anchor_rows(name):
    """Return the figures in the table of simple models, line by line."""
    lines = (DATA / name / "README.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "| unigram |" in line)
    return [[float(n) for n in re.findall(r"\d+\.\d+", line)] for line in lines[first + 2 :] if line.startswith("|")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdlib-docs", "stdlib-code"])
def test_anchors_of_the_standard_library(name):
    """The figures of simple models, where the corpus is the one that they were measured on."""
    row, corpus = row_of_this_python(name), open_corpus(name)
    if row is None or corpus.digest != row[-1]:
        pytest.skip("the page's figures are of another Python")
    (listed,) = anchor_rows(name)
    assert [anchor.bits_per_byte for anchor in causal_anchors(corpus)[1:]] == near(listed)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the text is not part of the project; its page says where it is")
def test_tinyshakespeare():
    """Digest, split, and the figures of simple models by character and by byte."""
    page = (SHAKESPEARE.parent / "README.md").read_text()
    data = SHAKESPEARE.read_bytes()
    corpus = open_corpus(str(SHAKESPEARE))
    assert hashlib.sha256(data).hexdigest() in page and f"{len(data):,} bytes" in page and corpus.digest in page
    train, valid = ("".join(corpus.documents(split)) for split in ("train", "valid"))
    assert f"({len(train):,} bytes)" in page and f"({len(valid):,} bytes)" in page and data.isascii()
    alphabet, ids = np.unique(np.frombuffer(data, np.uint8), return_inverse=True)
    assert f"{len(alphabet)} different ones" in page
    by_character, by_byte = anchor_rows("tinyshakespeare")
    losses = NGram(ids[: len(train)], vocab_size=len(alphabet), order=6).losses(ids[len(train) :]).mean(axis=1)
    assert losses[1:].tolist() == near(by_character[:6])
    bits = [anchor.bits_per_byte for anchor in causal_anchors(corpus)[1:]]
    assert bits == near(by_byte)
    assert [figure * math.log(2) for figure in bits[6:]] == near(by_character[6:])
