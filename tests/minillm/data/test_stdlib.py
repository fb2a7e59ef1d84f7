"""The embedded corpora: what is in them, what is not, and that no paragraph stands in both splits."""

import argparse
import collections
import re
from pathlib import Path

import pytest

from minillm.data import stdlib
from minillm.data.corpora import open_corpus

NAMES = list(stdlib.CORPORA)


@pytest.mark.parametrize("name", NAMES)
def test_tests_encodings_and_installed_packages_are_left_out(name):
    """No file of a test suite, of the character tables or of site-packages; files that everyone knows are there."""
    texts = stdlib.CORPORA[name]()
    unwanted = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
    assert not [path for path in texts if unwanted & set(path.split("/"))]
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= texts.keys()
    assert all(texts.values()), "an empty document"


def test_code_is_the_files_themselves():
    """A source file comes as it stands on the disk."""
    assert stdlib.code()["argparse.py"] == Path(argparse.__file__).read_text(encoding="utf-8")


def test_docs_hold_docstrings_comments_and_the_reference():
    """Prose of all three origins is there, and no code."""
    docs = stdlib.docs()
    assert argparse.ArgumentParser.__doc__.strip().splitlines()[0] in docs["argparse.py"]
    assert "\nimport os as _os\n" not in docs["argparse.py"]
    assert any(name.startswith("reference/") for name in docs)
    assert "_get_action_name" not in docs["argparse.py"].split()


def test_no_paragraph_of_the_docs_stands_in_two_documents():
    """Paragraphs of five words or more are unique across documents, whatever their line breaks: none can leak."""
    where = collections.defaultdict(set)
    for name, text in stdlib.docs().items():
        for paragraph in re.split(r"\n\s*\n", text):
            if len(re.findall("[A-Za-z]{2,}", paragraph)) >= 5:
                where[" ".join(paragraph.split())].add(name)
    assert not {paragraph: names for paragraph, names in where.items() if len(names) > 1}


SOURCE = '''"""Count sheep.

    >>> count(2)

Licensed to all sheep that can read this page.
"""
# one, two
# This comment has enough words for prose.
#
# - - -
x = """
# not a comment at all, but words within a string
"""


def count(n):
    """Return the number of sheep, which is n."""
    return n  # this is a remark after some code, and left out
'''


def test_blocks_of_a_source_file():
    """Docstrings and comment runs of five words, in order; not strings, remarks after code or rules."""
    assert stdlib._blocks(SOURCE) == [
        "Count sheep.\n\n    >>> count(2)\n\nLicensed to all sheep that can read this page.",
        "one, two\nThis comment has enough words for prose.",
        "Return the number of sheep, which is n.",
    ]
    assert stdlib._blocks("def broken(:\n") == []


def test_a_form_feed_does_not_shift_lines():
    """Page breaks, which str.splitlines counts as line ends and Python does not, leave strings recognised as such."""
    assert stdlib._blocks('x = 1\f\f\f\ny = """\n# seven words that stand within a string\n"""\n') == []


def test_a_seen_paragraph_is_dropped_and_its_block_kept():
    """What came before goes, also when its lines break elsewhere; the rest of its block stays, labels included."""
    seen = {"You may copy this file freely."}
    block = "Usage:\n\nYou may copy\nthis file freely.\n\nAnother paragraph of five or more words."
    assert stdlib._fresh(block, seen) == "Usage:\n\nAnother paragraph of five or more words."
    assert stdlib._fresh(block, seen) == ""


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_file(name):
    """Every file is on one side; both sides have text; about a tenth is held out."""
    corpus = open_corpus(name)
    train, valid = ({source.name for source in corpus._sources_of(split)} for split in ("train", "valid"))
    assert not train & valid and train | valid == set(stdlib.CORPORA[name]())
    assert 0.05 < corpus.num_bytes("valid") / (corpus.num_bytes("train") + corpus.num_bytes("valid")) < 0.15
