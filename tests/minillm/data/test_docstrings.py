"""The embedded labelled table: texts from the packages that it says, in splits that share none."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter

import pytest

from minillm.data.docstrings import PACKAGES, SHARES, docstrings, split_of, write_docstrings


@pytest.fixture(scope="module")
def rows():
    return docstrings()


def test_a_docstring_has_the_package_that_python_finds_it_in(rows):
    text = inspect.getdoc(asyncio.Queue)
    assert (text, "asyncio") in rows


def test_the_packages_are_as_many_as_said_and_each_has_enough_rows_to_learn_from(rows):
    counts = Counter(package for _, package in rows)
    assert len(counts) == PACKAGES
    assert min(counts.values()) >= 100


def test_no_text_stands_twice_whatever_its_line_breaks(rows):
    words = [" ".join(text.split()) for text, _ in rows]
    assert len(words) == len(set(words))


def test_splits_have_about_the_shares_that_are_said(rows):
    counts = Counter(split_of(text) for text, _ in rows)
    for split, share in SHARES.items():
        # a share of n fair draws is within four standard deviations of its mean
        assert abs(counts[split] / len(rows) - share) < 4 * (share * (1 - share) / len(rows)) ** 0.5


def test_a_text_goes_to_one_split_whatever_its_line_breaks():
    assert split_of("one two\nthree four five") == split_of("one two three\n  four five")


def test_the_files_hold_the_rows(rows, tmp_path):
    paths = write_docstrings(tmp_path / "docstrings")
    read = [json.loads(line) for path in paths.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted((row["text"], row["label"]) for row in read) == sorted(rows)
