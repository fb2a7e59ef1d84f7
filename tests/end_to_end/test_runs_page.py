"""docs/runs.md: its commands, in order, in one shell, as rehearsals; and what it says that they print."""

import os
import re
import subprocess
import sys

from small_runs import ROOT

PAGE = (ROOT / "docs/runs.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(tmp_path):
    """The second resume goes on from step 35, which is sound, and leaves a run whose checkpoints are all whole."""
    program = tmp_path / ".venv/bin/minillm"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m minillm "$@"\n')
    program.chmod(0o755)
    (tmp_path / "data").symlink_to(ROOT / "data")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert sum(block.count("minillm ") for block in blocks) == 4
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "QUICK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    damage = re.findall(
        r"minillm: (\S+)/model.safetensors is damaged: .*; the checkpoint of step 35 takes", done.stderr
    )
    assert damage == ["runs/long/checkpoints/step-000040"] * 2
    names = sorted(path.name for path in (tmp_path / "runs/long/checkpoints").iterdir())
    assert names == ["best", "latest", *(f"step-0000{n}" for n in (10, 20, 30, 40, 50, 55))]
    steps = [line.split(",")[0] for line in (tmp_path / "runs/long/metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps), key=int) and steps[-1] == "55"


def test_the_page_shows_no_setting_that_is_not_there():
    from minillm.config import fields_of
    from minillm.pretrain_config import PretrainConfig

    known = {name for name, _, _ in fields_of(PretrainConfig)}
    shown = set(re.findall(r"\b((?:train|data|optim|model)\.[a-z_]+)\b", PAGE)) - {"model.safetensors"}
    assert shown <= known and len(shown) >= 12
