"""Every file of the packages and benchmarks says what to read next, what it names is there, and no file is left out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("minillm", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def opening(path: Path) -> str:
    """Return a file's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def read_next(path: Path) -> list[str] | None:
    """Return the names in backquotes after the words "Read next" of a file's docstring, None where there are none."""
    said = re.search(r"Read next:(.*?)(\n\n|\Z)", opening(path), re.DOTALL)
    return None if said is None else re.findall(r"`([^`]+)`", said[1])


def place(name: str, source: Path) -> Path | None:
    """Return the file or folder of a name in a file: counted from its own folder, the project, minillm or kernels."""
    places = [folder / name for folder in (source.parent, ROOT, ROOT / "minillm", ROOT / "kernels")]
    return next((found.resolve() for found in places if found.exists()), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_to_read_next_is_there(path):
    names = read_next(path)
    assert names is not None, "no words Read next in its docstring"
    for name in names:
        assert place(name, path) is not None, f"no file {name}"


def led_to(path: Path) -> set[Path]:
    """Return the files to which a docstring sends its reader; of a folder's first file the files that it lists too."""
    names = set(read_next(path) or ())
    if path.name == "__init__.py":
        names |= set(re.findall(r"[\w/]+(?:\.py\b|/(?=\s))", opening(path)))
    found = {place(name, path) for name in names}
    return {each / "__init__.py" if each.is_dir() else each for each in found if each is not None}


@pytest.mark.parametrize("package", ["kernels/minillm_kernels", "minillm"])
def test_who_reads_on_comes_by_every_file(package):
    files = set((ROOT / package).rglob("*.py"))
    waiting = [ROOT / package / "__init__.py"]
    seen: set[Path] = set()
    while waiting:
        if (path := waiting.pop()) not in seen and path.suffix == ".py":
            seen.add(path)
            waiting += led_to(path)
    assert not (left := sorted(str(path.relative_to(ROOT)) for path in files - seen)), f"nothing leads to {left}"
