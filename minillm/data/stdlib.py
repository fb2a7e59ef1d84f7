"""Real text that every machine has: the standard library of the Python that runs this.

    stdlib-code    its source files
    stdlib-docs    per source file its docstrings and the prose in its comments; the language reference, as pydoc has it

Tests, character tables (encodings), demos and installed packages are left out. A paragraph of documentation that stands
in several files, such as a licence, is kept where it comes first, so it cannot be learnt in one split and asked in the
other; labels of a few words, such as "Usage:", may come again. The text differs between minor versions of Python;
figures are stated with theirs.

Read next: `docstrings.py`, then `corpora.py`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

LEFT_OUT = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "lib2to3", "turtledemo"}
LEFT_OUT |= {"__pycache__", "ensurepip", "pydoc_data", "_bundled"}
WORD = re.compile(r"[A-Za-z]{2,}")
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")  # what stands between two paragraphs
PROSE_WORDS = 5  # a comment or paragraph of fewer words is a label, a switched-off line or a rule


@cache
def code() -> dict[str, str]:
    """Return the source files of the standard library, by their names relative to it."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.isdisjoint(relative.parts) and not relative.parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):  # a few files are in Latin-1
                continue
            if text:
                found[relative.as_posix()] = text
    return found


@cache
def docs() -> dict[str, str]:
    """Return the documentation in those files, by their names, and the topics of the language reference.

    Cost: parses 9 MB of source, about six seconds the first time in a process.
    """
    seen: set[str] = set()
    found: dict[str, str] = {}
    for name, text in {**_topics(), **code()}.items():
        blocks = [text] if name.startswith("reference/") else _blocks(text)
        fresh = [block for block in (_fresh(block, seen) for block in blocks) if block]
        if fresh:
            found[name] = "\n\n".join(fresh) + "\n"
    return found


def _fresh(block: str, seen: set[str]) -> str:
    """Return a block without the paragraphs that were seen, empty where all of them were, and remember the others.

    The same words in other lines are the same paragraph. A label stays where something that is new follows or precedes.
    """
    paragraphs = [(paragraph, " ".join(paragraph.split())) for paragraph in BLANK_LINES.split(block)]
    new = {words for _, words in paragraphs if words not in seen}
    seen |= new
    kept = [paragraph for paragraph, words in paragraphs if words in new or len(WORD.findall(words)) < PROSE_WORDS]
    return "\n\n".join(kept).strip("\n") if new else ""


def _topics() -> dict[str, str]:
    """Return the topics of the language reference by name; none where this Python came without pydoc's data."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {f"reference/{name}": text.strip() for name, text in sorted(topics.items())}


def parsed(source: str) -> ast.Module | None:
    """Return the syntax tree of a source file, None of a template, which is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that the parser does not like
        try:
            return ast.parse(source)
        except SyntaxError:
            return None


def _blocks(source: str) -> list[str]:
    """Return the docstrings and blocks of comments of a source file, in the order in which they stand there."""
    if (tree := parsed(source)) is None:
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    placed: list[tuple[int, str]] = []
    inside: set[int] = set()  # lines of strings that span several
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
            placed.append((node.body[0].lineno, inspect.cleandoc(text).strip()))
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno:
            inside.update(range(node.lineno, (node.end_lineno or 0) + 1))
    placed += _comments(source, inside)
    return [text for _, text in sorted(placed) if text]


def _comments(source: str, inside: set[int]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each run of comment lines that reads as prose."""
    block: list[str] = []
    first = 0
    for number, line in enumerate([*source.split("\n"), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("#") and number not in inside and not stripped.startswith("#!"):
            if not block:
                first = number
            block.append(stripped.lstrip("#").removeprefix(" "))
            continue
        text = "\n".join(block).strip("\n -=*#")
        if len(WORD.findall(text)) >= PROSE_WORDS:
            yield first, text
        block = []


CORPORA: dict[str, Callable[[], dict[str, str]]] = {"stdlib-docs": docs, "stdlib-code": code}
