"""Where there is no Triton the tests skip what needs it, and run all else: here in a process that hides it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


PLUGIN = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "triton" else super().find_spec(fullname, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as on a system that has no Triton."""
    (folder / "without_triton.py").write_text(PLUGIN)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "without_triton", "-p", "no:xdist", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_ops_are_tested_but_for_their_kernels(tmp_path):
    done = run(
        tmp_path,
        "tests/kernels/test_relu.py",
        "tests/kernels/test_cross_entropy_cut.py",
        "kernels/minillm_kernels/relu",
    )
    assert done.returncode == 0, done.stdout
    passed, skipped = (word.split()[0] for word in done.stdout.splitlines()[-1].split(", ")[:2])
    assert int(passed) > 40 and int(skipped) > 30
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skips) > 2 and all("there is no Triton for this system" in line for line in skips)


@pytest.mark.slow
def test_every_file_can_be_read(tmp_path):
    done = run(tmp_path, "--collect-only")
    assert done.returncode == 0, done.stdout[-3000:]
