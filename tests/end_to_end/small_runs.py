"""The settings of tiny runs as words of the command line, and Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.context": 16,
    "model.num_layers": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "tokenizer.vocab_size": 300,
    "train.batch_size": 4,
    "train.max_steps": 6,
    "train.eval_every": 3,
    "train.checkpoint_every": 3,
    "train.log_every": 1,
    "train.device": "cpu",
}


def options(**changed):
    """Return the small settings as words of the command line; `model__width=32` changes one."""
    settings = SMALL | {name.replace("__", "."): value for name, value in changed.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def in_a_process(*words, environment=None, **options):
    """Run Python on the words in a process of its own, from the project's root, and return what came of it."""
    streams = {} if "stdout" in options else {"stdout": subprocess.PIPE}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
        | (environment or {}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        **streams,
        **options,
    )
