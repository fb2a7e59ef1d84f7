"""A labelled table that every machine has: docstrings of the standard library, each with the package it comes from.

    {"text": "Return a list of all the cookies ...", "label": "http"}

The packages are those with the most docstrings, so the table differs between minor versions of Python. A docstring is
kept once, where it comes first. Which of three files it goes to is decided by the hash of its words: the others then
stay where they are when a new Python adds some.

Pretraining on stdlib-docs has read most of these texts, but never where they come from: its corpus has no labels.

Read next: `../finetune/table.py`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minillm.data import stdlib

PACKAGES = 8  # labels of the table: in Python 3.11 to 3.13 the eighth has more than 180 docstrings
FEWEST_WORDS = 5  # a shorter docstring says nothing of where it comes from
SHARES = {"test": 0.15, "valid": 0.15}  # the rest is for training


def docstrings() -> list[tuple[str, str]]:
    """Return (text, package) of the docstrings of classes and functions in the packages that have the most.

    Cost: parses 5 MB of source, about four seconds.
    """
    seen: set[str] = set()
    rows: list[tuple[str, str]] = []
    for name, source in stdlib.code().items():
        package, slash, _ = name.partition("/")
        for text in _docstrings(source) if slash else ():
            words = " ".join(text.split())
            if words not in seen and words.count(" ") >= FEWEST_WORDS - 1:
                seen.add(words)
                rows.append((text, package))
    counts = Counter(package for _, package in rows)
    most = {package for package, _ in counts.most_common(PACKAGES)}
    return [(text, package) for text, package in rows if package in most]


def _docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of the classes and functions of a source file."""
    if (tree := stdlib.parsed(source)) is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node, clean=False):
                yield inspect.cleandoc(text).strip()


def split_of(text: str) -> str:
    """Return the split that a text belongs to: train, valid or test.

    >>> split_of("Return a copy of the list."), split_of("Close the file.")
    ('valid', 'train')
    """
    words = " ".join(text.split()).encode()
    share = int.from_bytes(hashlib.sha256(words).digest()[:8], "big") / 2**64
    for split, fraction in SHARES.items():
        if share < fraction:
            return split
        share -= fraction
    return "train"


def write_docstrings(folder: Path) -> dict[str, Path]:
    """Write the table as train.jsonl, valid.jsonl and test.jsonl into a folder; return the files by split."""
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for text, package in docstrings():
        lines[split_of(text)].append(json.dumps({"text": text, "label": package}, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / f"{split}.jsonl" for split in lines}
    for split, path in paths.items():
        path.write_text("".join(lines[split]), encoding="utf-8")
    return paths
