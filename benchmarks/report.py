"""A result as JSON, and the page made of it: results/<device>/<date>-<commit>.json, .md and plots.

The page is made from the JSON alone, so that it can be made again. No speed-up is printed for a row whose check failed,
was not made, or whose baseline's did.

Read next: `parts.py`, `plots.py`, `compare.py`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import parts

Result = Mapping[str, Any]


def write_json(result: Result, folder: Path, stem: str) -> None:
    """Write a result."""
    write_whole(folder / f"{stem}.json", json.dumps(result, indent=1) + "\n")


def write_page(result: Result, folder: Path, stem: str) -> None:
    """Write the page beside the JSON, without plots: those take seconds, and are drawn when the run ends."""
    write_whole(folder / f"{stem}.md", page(result))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole, or leave what is there as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except BaseException:  # a signal's too
        beside.unlink(missing_ok=True)
        raise


def write_page_with_plots(result: Result, folder: Path, stem: str) -> None:
    """Write the plots and the page beside the JSON; without matplotlib the page says so."""
    pictures: dict[str, list[str]] = {}
    trouble = ""
    try:
        from benchmarks import plots

        pictures = {section: [p.name for p in made] for section, made in plots.draw(result, folder, stem).items()}
    except Exception as error:  # what was measured is not lost to a plot
        trouble = f"{type(error).__name__}: {error}"
        print(f"benchmarks: no plots, {trouble}", file=sys.stderr)
    write_whole(folder / f"{stem}.md", page(result, pictures, trouble))


def status(result: Result) -> int:
    """Return 1 where a test or a section failed, or one of this project's own was wrong; else 0.

    A kernel of this project is wrong too where another run of it has other bits.
    """
    sections = result["sections"]
    files = sections.get("correctness", {}).get("files", {})
    ours = ("fused", "torch", "reference")
    rows = [*parts.rows_of(result, "ops"), *parts.rows_of(result, "scaling")]
    wrong = any(r["status"] == "wrong" and r["provider"] in ours for r in rows)
    wrong |= any(r["provider"] == "fused" and not (r.get("repeats", True) and r.get("finite", True)) for r in rows)
    wrong |= any(r["status"] == "wrong" and not r["peer"] for r in parts.rows_of(result, "recipes"))
    return int(wrong or any(f["failed"] for f in files.values()) or any("defect" in part for part in sections.values()))


def page(result: Result, pictures: Mapping[str, Sequence[str]] | None = None, trouble: str = "") -> str:
    """Return the page in Markdown.

    Args:
        pictures: names of the plots of each section.
        trouble: why there are none.
    """
    lines = list(_header(result))
    lines += ["", f"No plots: {trouble}."] if trouble else []
    for name, part in result["sections"].items():
        lines += ["", *parts.lines_of(name, part, result)]
        lines += [x for picture in (pictures or {}).get(name, ()) for x in ("", f"![{picture}]({picture})")]
        lines += ["", f"A defect ended this section: {part['defect']}."] if "defect" in part else []
    return "\n".join(lines) + "\n"


def _header(result: Result) -> Iterator[str]:
    head = result["header"]
    yield f"# {head['device']}, {head['date']}, commit {head['commit']}"
    yield ""
    words = ["python", "-m", "benchmarks", *["--quick"] * bool(result.get("quick")), *result.get("words", ())]
    yield f"Made by `{shlex.join(words)}`; do not edit."
    yield ""
    for name, value in head.items():
        if name in ("device", "date", "commit", "kind"):
            continue
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        yield f"- {name}: {text}"
