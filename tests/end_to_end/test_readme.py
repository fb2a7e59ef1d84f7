"""README's commands, word for word, in order, in a copy of the project, as twenty-step rehearsals (QUICK=1)."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from minillm_kernels.dispatch import OPS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "*.egg-info"
)
NOT_RUN_HERE = {"make test", "make test-full", "make lint"}  # this file is one of the tests that they run


def commands_of(text: str) -> list[str]:
    """Return the shell commands of every ```sh block, comments cut off, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#\s.*$", "", line).strip())]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the installed environment, as a fresh clone after set-up is."""
    copy = tmp_path_factory.mktemp("readme") / "minillm"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def test_readme_shows_commands():
    """The blocks are found at all: an empty list would make the next test pass for nothing."""
    commands = commands_of(README)
    assert "make quickstart" in commands
    assert sum("minillm " in c for c in commands) >= 6


def test_the_tree_is_that_of_the_files():
    """Every name in it is there, and `<op>` stands for each of the ops."""
    folder, names = "", []
    for line in README.partition("## What is where")[2].split("```")[1].splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        if indent > 2:
            continue  # a description goes on
        said = re.split(r"\s{2,}", line.strip())[0].split(", ")
        folder = folder if indent else said[0]
        names += [f"{folder}{name}" for name in said] if indent else said
    assert len(names) > 25
    every = [name.replace("<op>", op) for name in names for op in (OPS if "<op>" in name else ("",))]
    assert [name for name in every if not (ROOT / name).exists()] == []


def test_every_command_of_the_readme_works(project, monkeypatch, capsys):
    """Each command exits with 0, in order, in one shell, so that what one sets up the next one finds; then Python."""
    commands = [c for c in commands_of(README) if c not in NOT_RUN_HERE]
    script = "set -e\n" + "\n".join(f'echo "+ "{quoted(c)} >&2\n{c}' for c in commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=project,
        env={**os.environ, "QUICK": "1", "MPLBACKEND": "agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    for kind in ("decoder", "encoder"):
        assert (project / "runs/quickstart" / kind / "loss.png").stat().st_size > 5_000

    monkeypatch.chdir(project)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    length = len(names["run"].tokenizer.encode("In the morning"))
    assert names["hidden"].shape == (1, length, 128)
    assert names["logits"].shape == (1, length, names["run"].tokenizer.vocab_size)
    assert names["result"].tokens == 20 and capsys.readouterr().out.strip()


def quoted(command: str) -> str:
    """Return a command as one single-quoted shell word."""
    return "'" + command.replace("'", "'\\''") + "'"
