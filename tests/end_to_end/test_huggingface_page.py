"""docs/huggingface.md: every block runs, in order, as twenty-step rehearsals (QUICK=1), and its table is the code's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import minillm
from minillm.checkpoint.hf.families import FAMILIES
from minillm.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/huggingface.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def commands_of(block: str) -> list[str]:
    """Return the commands of a shell block, comments cut off, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#\s.*$", "", line).strip())]


def test_every_block_runs(tmp_path, monkeypatch, capsys) -> None:
    """Commands of ours in this process, others in a shell; Python blocks share their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    (tmp_path / "data").symlink_to(ROOT / "data")
    names: dict[str, Any] = {}
    kinds = []
    for kind, block in BLOCK.findall(PAGE):
        kinds.append(kind)
        if kind == "python":
            exec(block, names)
            continue
        for command in commands_of(block):
            words = shlex.split(command)
            if words[0] == "minillm":
                assert main(words[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
            else:
                subprocess.run(["bash", "-c", command], check=True)
    assert kinds.count("sh") >= 3 and kinds.count("python") >= 4
    assert names["losses"][-1] < names["losses"][0]
    assert names["answer"]["generated_text"].startswith("In the morning")
    assert names["hole"]["sequence"] and names["mood"]["label"] in ("good", "bad")
    old, again = (minillm.load(f"runs/{name}").model.state_dict() for name in ("decoder", "decoder-again"))
    assert all((tensor == again[name]).all() for name, tensor in old.items())


def test_the_table_of_families_is_what_the_code_knows() -> None:
    """Each family with its classes, in the order in which they are tried."""
    rows = [
        f"| {family.title} | `{kind}` | {' '.join(f'`{name}`' for name in family.classes)} |"
        for kind, family in FAMILIES.items()
    ]
    assert "\n".join(rows) in PAGE, "the table should read:\n" + "\n".join(rows)


def test_the_record_of_the_harness_is_what_was_recorded() -> None:
    """Date, versions and the largest difference; `make test-interop` runs the page's task and command."""
    said = json.loads((ROOT / "tests/interop/recorded/lm_eval.json").read_text(encoding="utf-8"))
    page = " ".join(PAGE.split())
    assert said["date"] in page and f"within {said['largest_relative_difference']:.1e}" in page
    for name, version in said["versions"].items():
        assert f"{name} {version}" in page
