"""`torchrun ... -m minillm`: one run folder, written by the first process, that every other command reads; restarts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import ROOT, in_a_process, options

from minillm.checkpoint.run_folder import RunFolder
from minillm.training.records import read_columns

CASES = ROOT / "tests/minillm/training/distributed_cases.py"
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
BUSY = {"model__dropout": 0.1, "train__micro_batch_size": 1, "train__ema_decay": 0.9, "train__compute_dtype": "float32"}


def torchrun(*words, size=2, more=()):
    """Run a module or a script in so many processes, and return what came of it."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, *more]
    return in_a_process(*start, *words)


def pretraining(out, text, **settings):
    """Return the words of a small run of an encoder with all that could depend on the processes."""
    small = {"data__input": text, "optim__schedule": "constant"} | BUSY
    return ("-m", "minillm", "pretrain", "--preset", "tiny-encoder", "--out", out, *options(**(small | settings)))


def figures(run):
    """Return the columns of metrics.csv without their empty cells."""
    return {name: [v for v in values if v is not None] for name, values in read_columns(run / "metrics.csv").items()}


def assert_same(ours, truth):
    for name, values in figures(truth).items():
        assert figures(ours)[name] == pytest.approx(values, rel=1e-3), name  # Muon's products are in bfloat16


@pytest.fixture
def alone(minillm, text, tmp_path):
    """The run folder of one process that took six steps."""
    status, _, err = minillm(*pretraining(tmp_path / "alone", text)[2:], "--quiet")
    assert status == 0, err
    return tmp_path / "alone"


def test_a_run_of_two_processes_is_a_run_like_any_other(minillm, text, alone, tmp_path):
    out = tmp_path / "run"
    done = torchrun(*pretraining(out, text, distributed__strategy="fsdp", train__max_steps=3), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3, "one object, of the first process"
    assert done.stderr.count("2 processes (fsdp) on cpu") == 1
    status, _, err = minillm("pretrain", "--resume", out, "--train.max_steps", 6, "--quiet")
    assert status == 0, err
    assert_same(out, alone)
    status, filled, err = minillm("fill", out, "--text", "A [MASK] came in.", "--json")
    assert status == 0 and json.loads(filled), err


def fine_tuning(run, folder):
    """Write small tables and return the words of a command that fine-tunes on them."""
    for name, count in (("train", 32), ("valid", 12), ("test", 8)):
        rows = [
            f"the {('cat', 'rain')[n % 2]} {'and so on ' * (n % 5)},{('good', 'bad')[n % 2]}\n" for n in range(count)
        ]
        (folder / f"{name}.csv").write_text("".join(["text,label\n", *rows]))
    words = ["finetune", run, "--train.batch_size", 8, "--train.micro_batch_size", 2, "--train.max_steps", 6]
    words += ["--train.eval_every", 3, "--train.log_every", 1, "--adapter.kind", "lora"]
    return words + [word for name in ("train", "valid", "test") for word in (f"--{name}", folder / f"{name}.csv")]


@pytest.mark.slow
def test_fine_tuning_runs_the_same_way(minillm, runs, tmp_path):
    words = [*fine_tuning(runs / "encoder", tmp_path), "--against_random", "true"]
    assert minillm(*words, "--out", tmp_path / "alone", "--quiet")[0] == 0
    for strategy in ("ddp", "fsdp"):
        out = tmp_path / strategy
        done = torchrun("-m", "minillm", *words, "--out", out, "--distributed.strategy", strategy, "--json")
        assert done.returncode == 0, done.stderr
        assert_same(out, tmp_path / "alone")
        assert_same(out / "random", tmp_path / "alone" / "random")
        assert json.loads(done.stdout)["baselines"].keys() == {"majority", "tfidf", "from random weights"}
        assert (out / "report" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, words",
    [
        pytest.param({"data__input": "nowhere.txt"}, "nowhere.txt", id="text"),
        pytest.param({"train__batch_size": 5}, "must be a multiple of the number of processes (2)", id="batch"),
    ],
)
def test_a_mistake_is_said_once(text, tmp_path, settings, words):
    """Found by the first process while it prepares the run, or by all of them when it is prepared."""
    done = torchrun(*pretraining(tmp_path / "run", text, **settings))
    assert done.returncode != 0
    assert done.stderr.count("minillm: ") == 1 and words in done.stderr
    assert not (tmp_path / "run").exists()


OWN_LAST_WORD = """
import os, sys
from minillm import cli

*shared, first, second = sys.argv[1:]
sys.argv[1:] = [*shared, (first, second)[int(os.environ["RANK"])]]
cli.run()
"""


@pytest.mark.parametrize(
    "setting, first, second",
    [("distributed.strategy", "ddp", "fsdp"), pytest.param("train.max_steps", 6, 9, marks=pytest.mark.slow)],
)
def test_a_process_with_another_setting_is_told_so_at_once(text, tmp_path, setting, first, second):
    """A machine on which the line was another one: the others would wait for what it never sends."""
    script = tmp_path / "own_last_word.py"
    script.write_text(OWN_LAST_WORD)
    done = torchrun(script, *pretraining(tmp_path / "run", text)[2:], f"--{setting}", first, second)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("minillm: ")]
    assert f"rank 1 has {setting} = {second}, and rank 0 {first}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_resumes_with_another_setting_is_told_so(alone, tmp_path):
    script = tmp_path / "own_last_word.py"
    script.write_text(OWN_LAST_WORD)
    done = torchrun(script, "pretrain", "--resume", alone, "--train.max_steps", 9, 12)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("minillm: ")]
    assert "rank 1 has train.max_steps = 12, and rank 0 9" in said


@pytest.mark.slow
def test_a_process_that_fine_tunes_with_another_setting_is_told_so(runs, tmp_path):
    script = tmp_path / "own_last_word.py"
    script.write_text(OWN_LAST_WORD)
    words = [*fine_tuning(runs / "encoder", tmp_path), "--out", tmp_path / "run"]
    done = torchrun(script, *words, "--adapter.rank", 4, 2)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("minillm: ")]
    assert "rank 1 has adapter.rank = 2, and rank 0 4" in said
    assert not (tmp_path / "run").exists()


SLOW_SAVES = """
import time
from minillm import cli
from minillm.checkpoint.run_folder import RunFolder

save = RunFolder.save

def slow_save(*words, **options):
    time.sleep(2)
    return save(*words, **options)

RunFolder.save = slow_save
cli.run()
"""


BREAKS_AT_STEP_4 = """
from minillm.training import trainer

add_gradient, asked = trainer.add_gradient, []

def breaks(*words, **options):
    loss, excess = add_gradient(*words, **options)
    asked.append(loss)
    return (loss if len(asked) < 4 else loss * float("nan")), excess

trainer.add_gradient = breaks
"""


@pytest.mark.parametrize("whom", ["first", pytest.param("all", marks=pytest.mark.slow)])
def test_sigterm_lets_the_first_process_finish_its_save_and_begins_nothing_anew(text, tmp_path, whom):
    """torchrun sends SIGTERM to those that still run when one has failed, and when it is sent one itself."""
    out, script = tmp_path / "run", tmp_path / "slow_saves.py"
    script.write_text(SLOW_SAVES)
    words = pretraining(out, text, train__max_steps=100_000, train__checkpoint_every=100_000, train__eval_every=0)
    with started(script, *words[2:], more=["--max-restarts", "1"]) as run:
        wait_for(out / "metrics.csv", lines=4)  # all of them train
        ranks = workers(run.pid)
        os.kill(ranks[0], signal.SIGTERM)
        if whom == "all":
            time.sleep(0.5)  # the first process saves now, for two seconds
            for process in (ranks[1], run.pid):
                os.kill(process, signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    assert err.count("2 processes (ddp) on cpu") == err.count("stopped after step") == 1, err
    assert run.returncode == 0 or whom == "all", "torchrun's own signal is its status"
    assert figures(out)["step"][-1] == RunFolder(out).load().step


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["skip", "stop"])
def test_an_end_of_all_processes_is_said_once_and_knows_the_write_in_flight(text, tmp_path, rule):
    """Step 4 has no finite loss, nor any after it, while the first process still saves step 3."""
    out, script = tmp_path / "run", tmp_path / "slow_saves.py"
    script.write_text(BREAKS_AT_STEP_4 + SLOW_SAVES)
    words = pretraining(out, text, train__checkpoint_every=3, train__eval_every=0, train__on_non_finite=rule)
    done = torchrun(script, *words[2:], "--train.max_skips_in_a_row", 0, "--quiet")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("minillm: ")]
    assert "no longer a finite number at step 4" in said and "the checkpoint of step 3 is safe" in said, said


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all_of_them_after_the_same_step(text, tmp_path):
    out = tmp_path / "run"
    with started(*pretraining(out, text, train__max_steps=100_000, train__checkpoint_every=5)) as run:
        wait_for(out / "checkpoints" / "latest")
        os.kill(workers(run.pid)[1], signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 0, "another status is a failure to torchrun, which it may answer by beginning anew"
    assert err.count("stopped after step") == 1 and f"go on with: minillm pretrain --resume {out}" in err


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process_and_it_ends_as_the_unbroken_one_bit_for_bit(text, tmp_path):
    settings = {"train__max_steps": 60, "train__checkpoint_every": 5, "train__eval_every": 20}
    assert torchrun(*pretraining(tmp_path / "unbroken", text, **settings), "--quiet").returncode == 0
    out = tmp_path / "run"
    with started(*pretraining(out, text, **settings), more=["--max-restarts", "1"]) as run:
        wait_for(out / "checkpoints" / "latest")
        os.kill(workers(run.pid)[1], signal.SIGKILL)
        _, err = run.communicate(timeout=100)
    assert run.returncode == 0, err
    assert err.count("2 processes (ddp) on cpu") == 2, "the run was to begin twice"
    for name in ("metrics.csv", *(f"checkpoints/step-000060/{kind}.safetensors" for kind in ("model", "optimiser"))):
        assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name


@pytest.mark.slow
def test_overwriting_a_run_that_may_be_restarted_is_refused(text, tmp_path):
    done = torchrun(*pretraining(tmp_path / "run", text), "--overwrite", more=["--max-restarts", "1"])
    assert done.returncode != 0 and "--overwrite does not go with torchrun --max-restarts" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, words",
    [
        pytest.param("sleep", "holds up the others, preparing the batch in step 3", id="stalled"),
        pytest.param("fail", "RuntimeError: a defect", id="defect"),
        pytest.param("full", "says: cannot write", id="full-disk"),
        pytest.param("mistake", "rank 1 says: a mistake", id="mistake"),
    ],
)
def test_the_process_that_ends_a_run_is_named(tmp_path, case, words):
    done = torchrun(CASES, tmp_path, case)
    assert done.returncode != 0
    assert done.stderr.count(words) == 1, done.stderr


@pytest.mark.slow
def test_a_machine_that_is_lost_is_named_on_another_one(tmp_path):
    """Two torchruns are two machines here; each knows of the other what the processes say."""
    machine = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    runs = [
        subprocess.Popen(command(*machine, f"--node-rank={rank}", CASES, tmp_path, "die"), **pipes()) for rank in (0, 1)
    ]
    said = [run.communicate(timeout=100)[1] for run in runs]
    assert all(run.returncode != 0 for run in runs)
    assert "rank 1 (process" in said[0] and "gives no sign of life" in said[0], said


def command(*words):
    return [sys.executable, "-m", "torch.distributed.run", *map(str, words)]


def pipes():
    return {
        "cwd": ROOT,
        "env": os.environ | ENVIRONMENT,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


@contextlib.contextmanager
def started(*words, more=()):
    """Let torchrun run two processes while the block lasts."""
    run = subprocess.Popen(command("--standalone", "--nproc-per-node=2", *more, *words), **pipes())
    try:
        yield run
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(timeout=60)


def workers(agent):
    """Return the process ids of a torchrun's workers, by rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    ranks = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(word[5:]): int(child) for word in words if word.startswith(b"RANK=")}
    return ranks


def wait_for(path, lines=0):
    for _ in range(600):
        if path.exists() and (not lines or path.read_bytes().count(b"\n") >= lines):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not come in a minute")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
