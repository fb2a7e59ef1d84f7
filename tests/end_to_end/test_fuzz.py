"""Whatever is typed or written into a configuration file: exit status 0 or 2, one clear line, never a traceback."""

import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import traceback
from collections import Counter

import pytest
from fuzz import COMMANDS, Fuzz, options_in
from small_runs import ROOT

from minillm import cli

MEMORY = 24 << 30  # bytes of addresses: what asks for more is refused by the system, as it would be on a small machine


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    """A folder with runs, texts and a table: right ones and wrong ones."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("decoder", "encoder"):
        shutil.copytree(runs / name, folder / name)
    shutil.copytree(runs / "decoder", folder / "damaged")
    for path in folder.glob("damaged/checkpoints/step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    (folder / "story.txt").write_text("The cat sat on the mat.\n" * 40)
    (folder / "tiny.txt").write_text("ab")
    (folder / "empty.txt").touch()
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "table.csv").write_text("text,label\n" + "good cat,good\nbad dog,bad\n" * 6)
    words = ["finetune", folder / "encoder", "--train", folder / "table.csv", "--valid", folder / "table.csv"]
    words += ["--out", folder / "tuned", "--train.max_steps", 1, "--train.batch_size", 2, "--quiet"]
    assert cli.main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def listed():
    """The options of every command, as its help lists them."""
    found = {}
    for command in COMMANDS:
        before, sys.stdout = sys.stdout, io.StringIO()
        try:
            cli.main([*command, "--help"])
            found[command] = options_in(sys.stdout.getvalue())
        finally:
            sys.stdout = before
    return found


@pytest.fixture
def frugal(place, monkeypatch):
    """Run in that folder, with few steps, no plots, nothing on standard input and a bound on memory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for module in ("pretrain", "finetune.run"):
        monkeypatch.setattr(f"minillm.{module}.draw_plots", lambda *_, **__: None)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_lines(place, listed, capsys, count, seed):
    """Run so many generated command lines, and return how often each status came."""
    fuzz = Fuzz(random.Random(seed), place, ["decoder", "encoder", "story.txt", "table.csv", "nowhere/x", "."], listed)
    statuses, defects = Counter(), []
    for _ in range(count):
        words = fuzz.words()
        for path in place.glob("out-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            status = cli.main(words)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            status = "".join(traceback.format_exception(error)[-3:])
        out, err = capsys.readouterr()
        statuses[status if isinstance(status, int) else "defect"] += 1
        if status == 2:
            last = err.strip().splitlines()[-1] if err.strip() else ""
            if not last.startswith("minillm: ") or "Traceback" in err:
                defects.append((words, f"status 2 and {err!r}"))
        elif status == 0 and "--json" in words and out.strip().startswith("{"):
            json.loads(out.strip().splitlines()[-1])
        elif status != 0:
            defects.append((words, status))
    assert not defects, "\n\n".join(f"{words}\n{told}" for words, told in defects[:20]) + f"\n{len(defects)} of {count}"
    return statuses


def test_some_generated_command_lines(place, listed, capsys, frugal):
    statuses = check_lines(place, listed, capsys, 250, seed=1)
    assert statuses[2] >= 125 and statuses[0] >= 12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_ten_thousand_generated_command_lines(place, listed, capsys, frugal, seed):
    statuses = check_lines(place, listed, capsys, 1000, seed)
    with capsys.disabled():
        print(f"\n1,000 command lines of seed {seed}: {dict(statuses)}")


def check_shell(place, listed, count, seed):
    """Run generated command lines through the shell's entry, each in a process of its own."""
    fuzz = Fuzz(random.Random(seed), place, ["decoder", "encoder", "story.txt", "table.csv", "nowhere/x", "."], listed)
    for _ in range(count):
        words = [word for word in fuzz.words() if "\x00" not in word]  # the system takes no such word
        done = subprocess.run(
            [sys.executable, "-m", "minillm", *words],
            cwd=place,
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "QUICK": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        told = done.stderr.decode()
        assert done.returncode in (0, 2) and "Traceback" not in told, f"{words}\n{done.returncode}\n{told}"
        if done.returncode == 2:
            assert told.strip().splitlines()[-1].startswith("minillm: "), f"{words}\n{told}"


def test_a_few_through_the_shell(place, listed):
    check_shell(place, listed, 5, seed=3)


@pytest.mark.slow
def test_a_hundred_through_the_shell(place, listed):
    check_shell(place, listed, 100, seed=4)
