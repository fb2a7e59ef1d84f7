"""Tiny runs: their settings as words of the command line, commands in a process of their own, and what came of one."""

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


def on_a_full_disk(size, *words):
    """Run a command in a process of its own that can make no file larger than `size` bytes."""
    return in_a_process(
        "-c",
        "import resource, signal, sys\n"
        "from minillm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "sys.exit(main(sys.argv[1:]))",
        *words,
    )


def train(minillm, source, out, *words, **settings):
    """Begin a small run on `source`."""
    begin = ("pretrain", "--preset", "tiny-decoder", "--data.input", source, "--out", out, "--quiet")
    return minillm(*begin, *options(**settings), *words)


def one_line(outcome):
    """Return the only line of an error, after checking that it is one and that the status is 2."""
    status, out, err = outcome
    assert status == 2, f"exit status {status}: {err}"
    assert out == ""
    line = err.strip()
    assert line.startswith("minillm: ") and "\n" not in line, err
    assert "Traceback" not in line
    return line


def files_of(run):
    """Return the content of every file in a folder, hidden ones too."""
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
