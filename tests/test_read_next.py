"""Every file of the packages and benchmarks says what to read next, and what it names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("minillm", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def read_next(path: Path) -> list[str] | None:
    """Return the names in backquotes after the words "Read next" of a file's docstring, None where there are none."""
    said = re.search(r"Read next:(.*?)(\n\n|\Z)", ast.get_docstring(ast.parse(path.read_text())) or "", re.DOTALL)
    return None if said is None else re.findall(r"`([^`]+)`", said[1])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_to_read_next_is_there(path):
    """Names are counted from the file's own folder, or from the project, minillm or kernels."""
    names = read_next(path)
    assert names is not None, "no words Read next in its docstring"
    for name in names:
        places = [folder / name for folder in (path.parent, ROOT, ROOT / "minillm", ROOT / "kernels")]
        assert any(place.exists() for place in places), f"no file {name}"
