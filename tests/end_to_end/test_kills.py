"""A run that is killed again and again ends, bit for bit, as the run that never was: SIGKILL at random moments.

The run has what usually breaks a resume: gradient accumulation, packed masked LM with its random masks, dropout, a
running mean of the weights, Muon beside AdamW, an evaluation that chooses the best checkpoint, and checkpoints that
are written by a thread while training goes on.
"""

import os
import random
import signal
import time
from collections import Counter

import pytest
from lives import Lives, wait_for

from minillm import cli
from minillm.checkpoint.files import REMOVING, WRITING
from minillm.checkpoint.run_folder import RunFolder

STEPS = 60
SETTINGS = {
    "model.context": 16,
    "model.num_layers": 2,
    "model.width": 32,
    "model.num_heads": 2,
    "model.dropout": 0.1,
    "tokenizer.kind": "byte",
    "data.layout": "packed",
    "data.document_mask": "true",
    "optim.name": "muon",
    "optim.warmup_steps": 5,
    "train.batch_size": 6,
    "train.micro_batch_size": 2,
    "train.ema_decay": 0.9,
    "train.max_steps": STEPS,
    "train.eval_every": 7,
    "train.checkpoint_every": 4,
    "train.keep_checkpoints": 2,
    "train.log_every": 1,
    "train.device": "cpu",
    "train.compute_dtype": "float32",
}
AIMS = ("any", "step", "saving")  # what a kill is aimed at: any moment, one of training, one of writing a checkpoint


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    lives = Lives(tmp_path_factory.mktemp("lives") / "log.txt")
    yield lives
    lives.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Three documents, so that packed windows cross their bounds."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(3):
        lines = (f"Line {n} of text {number}: {'abcdefghij'[n % 10] * (n % 17)}." for n in range(25 + 10 * number))
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


def words(text, out):
    """Return the command that begins the run."""
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    return ("pretrain", "--preset", "tiny-encoder", "--data.input", text, "--out", out, "--quiet", *settings)


@pytest.fixture(scope="module")
def unbroken(lives, text, tmp_path_factory):
    """(folder, seconds) of the run that nobody kills."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    lives.begin(*words(text, out))
    before = time.monotonic()
    assert lives.status() == 0
    return RunFolder(out), time.monotonic() - before


def left(folder):
    """Return all that a run leaves but its clock readings and plots, by name."""
    paths = [folder.metrics_path, folder.config_path, folder.corpus_path, *folder.checkpoints.rglob("*")]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths if path.is_file()}


def killed(lives, command, folder, aim, chance, seconds):
    """Begin a life and end it at a random moment of the kind that is aimed at; return its exit status."""
    child = lives.begin(*command)
    if aim == "any":
        time.sleep(chance.uniform(0, 0.7 * seconds))
    elif aim == "step":
        size = folder.metrics_path.stat().st_size if folder.steps() else 0
        wait_for(lambda: folder.metrics_path.exists() and folder.metrics_path.stat().st_size > size, seconds)
        time.sleep(chance.uniform(0, 0.3 * seconds))
    else:
        for _ in range(chance.randint(1, 3)):  # not always the first one
            draft = next_draft(folder, seconds)
            wait_for(lambda draft=draft: draft is None or not draft.exists(), chance.choice((0.0, 0.5)) * seconds)
        next_draft(folder, seconds)
        time.sleep(chance.uniform(0, 0.004))
    try:
        os.kill(child, signal.SIGKILL)  # the parent has not looked at its status yet: the number is nobody else's
    except ProcessLookupError:
        pass
    return lives.status()


def next_draft(folder, seconds):
    """Wait for a checkpoint that is being written, and return its place."""
    found = []
    wait_for(lambda: found.extend(folder.checkpoints.glob(f"{WRITING}step-*")) or found, seconds)
    return found[0] if found else None


def moment(folder):
    """Return what the killed process was at, by what lies about."""
    if not folder.steps() and not list(folder.checkpoints.glob(f"{WRITING}*")):
        return "before the first checkpoint"
    passing = [path.name for path in folder.checkpoints.glob(".*") if path.name.startswith((WRITING, REMOVING))]
    return "while saving" if passing else "between two checkpoints"


def check_kills(lives, text, unbroken, tmp_path, kills, capsys):
    """Kill runs so many times, each at random moments until it ends; return what they were at."""
    expected, seconds = left(unbroken[0]), unbroken[1]
    chance = random.Random(2026)
    moments, runs = Counter(), 0
    while moments.total() < kills:
        runs += 1
        folder = RunFolder(tmp_path / f"run-{runs}")
        status = None
        while status != 0:
            command = ("pretrain", "--resume", folder, "--quiet") if folder.steps() else words(text, folder)
            if moments.total() < kills:
                status = killed(lives, command, folder, AIMS[moments.total() % len(AIMS)], chance, seconds)
            else:
                lives.begin(*command)
                status = lives.status()
            assert status in (0, -signal.SIGKILL)
            if status != 0:
                moments[moment(folder)] += 1
                for step in folder.steps():
                    folder.load(step)  # raises where a file is not what was written
                if folder.steps():
                    assert folder.load().step >= folder.steps()[-1] - 2 * SETTINGS["train.checkpoint_every"]
        found = left(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == [], f"run {runs} after {moments}"
    assert capsys.readouterr().err == ""  # no checkpoint had to take the place of another one
    return moments, runs


def test_a_few_kills(lives, text, unbroken, tmp_path, capsys):
    """Six kills, aimed in turn at any moment, at training and at writing a checkpoint."""
    moments, _ = check_kills(lives, text, unbroken, tmp_path, 6, capsys)
    assert moments["while saving"] >= 1


def test_sigterm_saves_and_nobody_else_trains_there_meanwhile(lives, text, unbroken, tmp_path, capsys):
    """Exit status 143, the command that goes on, and the unbroken run's bits; a second trainer is told who trains."""
    folder = RunFolder(tmp_path / "run")
    child = lives.begin(*words(text, folder))
    wait_for(lambda: folder.metrics_path.exists() and folder.metrics_path.stat().st_size > 200, 60)
    assert folder.trainer() == child
    assert cli.main(["pretrain", "--resume", str(folder), "--quiet"]) == 2
    assert cli.main([*map(str, words(text, folder)), "--overwrite"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"being trained by process {child}" in second and ("no checkpoint yet" in first or str(child) in first)
    os.kill(child, signal.SIGTERM)
    assert lives.status() == 128 + signal.SIGTERM and folder.trainer() is None
    told = lives.told().splitlines()[-1]
    assert told.endswith(f"saved; go on with: minillm pretrain --resume {folder}")
    lives.begin("pretrain", "--resume", folder, "--quiet")
    assert lives.status() == 0 and left(folder) == left(unbroken[0])


@pytest.mark.slow
def test_two_hundred_kills(lives, text, unbroken, tmp_path, capsys):
    """The same 200 times over; prints what the processes were at."""
    moments, runs = check_kills(lives, text, unbroken, tmp_path, 200, capsys)
    with capsys.disabled():
        print(f"\n{moments.total()} kills in {runs} runs of {STEPS} steps: {dict(moments)}")
    assert moments["while saving"] >= 40 and moments["between two checkpoints"] >= 40
