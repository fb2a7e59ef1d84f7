"""docs/tokenizers-and-gguf.md: its blocks run, in order, and its record is what was recorded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tokenizers-and-gguf.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning")
def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell and Python, one after the other, in a folder with the project's samples."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "python"]
    names: dict[str, Any] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(block, names)
            continue
        script = f'set -e\nminillm() {{ "{sys.executable}" -m minillm "$@"; }}\n{block}'
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        done = subprocess.run(
            ["bash", "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_record_is_what_was_recorded() -> None:
    """Date, versions and the largest difference of logits."""
    recorded = json.loads((ROOT / "tests/interop/recorded/llama.json").read_text(encoding="utf-8"))
    assert recorded["date"] in PAGE
    for name, version in recorded["versions"].items():
        assert f"{name} {version}" in " ".join(PAGE.split())
    assert f"differ by {recorded['largest_difference_of_logits']:.1e} at most" in PAGE
