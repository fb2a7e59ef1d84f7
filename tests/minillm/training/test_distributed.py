"""Several processes take the steps of one: same losses, same weights, whatever share of the targets each of them has.

In float64 the order of sums is all that differs, and it shows in the fifteenth digit; float32 is held to its rounding.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distributed_cases
import pytest
import torch
from distributed_cases import CASES, CPU
from torch.distributed import HashStore

from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training.config import TrainConfig
from minillm.training.distributed import Processes
from minillm.training.distributed_config import DistributedConfig
from minillm.training.records import read_columns

ROOT = Path(__file__).parents[3]
TRUTH = 1e-12  # float64: the largest difference allowed between two orders of summation
EVERY_SIZE = [pytest.param(2, id="2"), pytest.param(4, id="4", marks=pytest.mark.slow)]
SPREAD = ["ddp", "ddp-masked-muon", "fsdp", "fsdp-masked-muon", "fsdp-recomputed", "fsdp-sgd", "float32-ddp"]
SPREAD += ["float32-fsdp", "half", "rest", "sharded-half", "head-rule"]
SPREAD += ["narrow-ddp", "narrow-fsdp", "unbroken", "resumed", "sharded-unbroken", "sharded-resumed", "no-room", "lie"]
SPREAD += ["stopped"]  # last: it leaves the process deaf to signals
Launch = Callable[[int], Path]


def alone(name: str, path: Path) -> RunFolder:
    """Return the run of a case that one process takes, in this one."""
    if not RunFolder(path).steps() or RunFolder(path).steps()[-1] < CASES[name].train.get("max_steps", 6):
        distributed_cases.run(CASES[name], path, Processes(device=CPU))
    return RunFolder(path)


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Launch:
    """A function that lets so many processes take all cases, once, and returns where their folders lie."""
    done: dict[int, Path] = {}

    def launched(size: int) -> Path:
        if size not in done:
            out = tmp_path_factory.mktemp(f"processes-{size}")
            alone("half", out / "half.1")
            shutil.copytree(out / "half.1", out / f"rest.{size}")
            names = [*SPREAD, "hybrid-masked-muon"] if size == 4 else SPREAD
            torchrun(size, str(ROOT / "tests/minillm/training/distributed_cases.py"), str(out), *names)
            done[size] = out
        return done[size]

    return launched


def torchrun(size: int, *words: str) -> None:
    """Run a script in so many processes with one thread each."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_same(ours: RunFolder, truth: RunFolder, bound: float) -> None:
    """Compare figures of all steps, and every tensor of the last checkpoint: weights, their means, optimiser."""
    came = read_columns(ours.metrics_path)
    for column, values in read_columns(truth.metrics_path).items():
        assert [v is None for v in came[column]] == [v is None for v in values], column
        assert [v for v in came[column] if v is not None] == pytest.approx([v for v in values if v is not None], 2e-6)
    one, other = ours.load(), truth.load()
    assert {k: v for k, v in one.state.items() if type(v) is int} == {
        k: v for k, v in other.state.items() if type(v) is int
    }
    for read in ("model_tensors", "optimiser_tensors"):
        mine, theirs = getattr(one, read)(), getattr(other, read)()
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name", ["ddp", "ddp-masked-muon", "fsdp", "fsdp-masked-muon", "fsdp-recomputed", "fsdp-sgd"])
def test_processes_take_the_steps_of_one(launch, tmp_path, name, size):
    assert_same(RunFolder(launch(size) / f"{name}.{size}"), alone(name, tmp_path / "truth"), TRUTH)


@pytest.mark.slow
def test_groups_of_shards_take_the_steps_of_one(launch, tmp_path):
    name = "hybrid-masked-muon"
    assert_same(RunFolder(launch(4) / f"{name}.4"), alone(name, tmp_path / "truth"), TRUTH)


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name", ["float32-ddp", "float32-fsdp"])
def test_in_float32_they_differ_by_its_rounding(launch, tmp_path, name, size):
    assert_same(RunFolder(launch(size) / f"{name}.{size}"), alone(name, tmp_path / "truth"), 2e-5)


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name", ["narrow-ddp", "narrow-fsdp"])
def test_bfloat16_between_processes_rounds_and_leaves_the_weights_float32(launch, tmp_path, name, size):
    ours, truth = RunFolder(launch(size) / f"{name}.{size}"), alone(name, tmp_path / "truth")
    for column in ("loss", "grad_norm"):
        came, values = (read_columns(run.metrics_path)[column] for run in (ours, truth))
        assert came == pytest.approx(values, rel=5e-3) and came != pytest.approx(values, rel=1e-6), column
    for read in ("model_tensors", "optimiser_tensors"):
        assert {tensor.dtype for tensor in getattr(ours.load(), read)().values()} == {torch.float32}


@pytest.mark.parametrize("size", EVERY_SIZE)
def test_what_one_process_saved_several_go_on_with(launch, tmp_path, size):
    assert_same(RunFolder(launch(size) / f"rest.{size}"), alone("rest", tmp_path / "truth"), TRUTH)


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name", ["half", "sharded-half"])
def test_what_several_processes_saved_one_goes_on_with(launch, tmp_path, name, size):
    place = tmp_path / "again"
    shutil.copytree(launch(size) / f"{name}.{size}", place)
    shards = sorted(path.name for path in place.glob("checkpoints/step-000003/optimiser*"))
    if name == "half":
        assert shards == ["optimiser.safetensors"]
    else:
        assert shards == [f"optimiser.{rank:05d}.safetensors" for rank in range(1, size + 1)]
    assert_same(alone("rest", place), alone("rest", tmp_path / "truth"), TRUTH)


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("kind", ["", "sharded-"], ids=["whole", "sharded"])
def test_a_run_that_several_processes_stopped_and_resumed_is_the_unbroken_one_bit_for_bit(launch, kind, size):
    """Steps 4 to 6 with dropout, masks, accumulation, Muon and a mean of the weights, from the checkpoint of step 3."""
    unbroken, resumed = (RunFolder(launch(size) / f"{kind}{name}.{size}") for name in ("unbroken", "resumed"))
    assert resumed.metrics_path.read_bytes() == unbroken.metrics_path.read_bytes()
    assert len(list(unbroken.folder_of(6).glob("optimiser*"))) == (size if kind else 1)
    assert (one := resumed.load()).state == (other := unbroken.load()).state and one.step == 6
    for read in ("model_tensors", "unaveraged_tensors", "optimiser_tensors"):
        mine, theirs = getattr(one, read)(), getattr(other, read)()
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name, step", [pytest.param("no-room", 2, id="no-folder"), pytest.param("lie", 3, id="lie")])
def test_a_share_that_is_not_on_the_disk_costs_its_checkpoint_alone(launch, size, name, step):
    """One process cannot make the folder, or finds other bytes in its file: all go on, and the next one is written."""
    run = RunFolder(launch(size) / f"{name}.{size}")
    assert step not in run.steps() and run.steps()[-1] == run.load().step == 6
    assert read_columns(run.metrics_path)["step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("size", EVERY_SIZE)
def test_a_stop_ends_in_no_process_before_the_last_write(launch, size):
    """torchrun ends the others when one process has ended with the status of a failure."""
    for rank in range(size):
        found = json.loads((launch(size) / f"stopped.{size}.{rank}.json").read_text())
        assert found == {"step": 3, "saved": [3], "signal": 15, "ignored": True}, f"rank {rank}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "sharded-"], ids=["whole", "sharded"])
def test_what_four_processes_saved_two_go_on_with(launch, tmp_path, kind):
    shutil.copytree(launch(4) / f"{kind}half.4", tmp_path / f"{kind}rest.2")
    torchrun(2, str(ROOT / "tests/minillm/training/distributed_cases.py"), str(tmp_path), f"{kind}rest")
    assert_same(RunFolder(tmp_path / f"{kind}rest.2"), alone("rest", tmp_path / "truth"), TRUTH)


@pytest.mark.parametrize("size", EVERY_SIZE)
def test_embedding_and_output_weight_belong_to_the_root_and_stay_whole_until_the_backward_pass(launch, size):
    found = json.loads((launch(size) / f"head-rule.{size}.json").read_text())
    assert found["spread"] == sorted(found["all"]), "every weight is to be shared out"
    assert found["usable"], "an objective multiplies by the output weight after the forward pass"
    assert found["whole"] == [name for name in found["all"] if not name.startswith("blocks.")]
    assert any(name.startswith("embeddings.") for name in found["whole"])


def processes_of(size: int, **settings: object) -> Processes:
    return Processes(device=CPU, size=size, config=DistributedConfig(**settings))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "size, batch_size, micro_batch_size, parts",
    [
        pytest.param(1, 6, None, 1, id="one"),
        pytest.param(3, 6, None, 3, id="all-rows-of-each"),
        pytest.param(2, 8, 2, 4, id="two-each"),
        pytest.param(4, 8, 8, 4, id="more-than-a-share"),
    ],
)
def test_the_batch_is_cut_into_as_many_parts_for_each_process(size, batch_size, micro_batch_size, parts):
    train = TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size)
    assert processes_of(size).micro_batches(train) == parts


@pytest.mark.parametrize(
    "size, micro_batch_size, said",
    [
        (4, None, ""),
        (4, 2, ""),
        (4, 8, "each of 4 processes has 2 of the batch"),
        (1, 8, ""),
    ],
)
def test_micro_batches_that_are_smaller_than_asked_for_are_said(size, micro_batch_size, said):
    words = processes_of(size).smaller_micro_batch(TrainConfig(batch_size=8, micro_batch_size=micro_batch_size))
    assert said in words and bool(words) == bool(said)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="multiple of the number of processes \\(3\\); try 9"):
        processes_of(3).micro_batches(TrainConfig(batch_size=8))
    with pytest.raises(InputError, match="must divide the 6 sequences of each of 2 processes; try 3"):
        processes_of(2).micro_batches(TrainConfig(batch_size=12, micro_batch_size=4))


@pytest.mark.parametrize("asked, near", [(4, 3), (10**15, 6)], ids=["near", "beyond all processes"])
def test_groups_that_do_not_go_with_the_processes_are_refused_at_once(asked, near):
    processes = Processes(device=CPU, size=6, config=DistributedConfig(strategy="hybrid", shard_size=asked))
    with pytest.raises(InputError, match=f"must divide the number of processes \\(6\\); try {near}"):
        processes._mesh()


@pytest.mark.parametrize(
    "train, dtype, words",
    [
        pytest.param(TrainConfig(compile=True), torch.float32, "train.compile goes with ddp", id="compile"),
        pytest.param(TrainConfig(), torch.float16, "float16 goes with ddp", id="float16"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(train, dtype, words):
    def spread(strategy: str) -> Processes:
        return Processes(device=CPU, size=2, store=HashStore(), config=DistributedConfig(strategy=strategy))  # pyright: ignore[reportArgumentType]

    spread("ddp").check(train, dtype)
    with pytest.raises(InputError, match=words):
        spread("fsdp").check(train, dtype)


@pytest.mark.parametrize(
    "settings, words",
    [
        pytest.param({"shard_size": 2}, "goes with hybrid", id="shard-size-of-ddp"),
        pytest.param({"strategy": "hybrid", "shard_size": 0}, "at least 1", id="no-shard"),
        pytest.param({"param_dtype": "bfloat16"}, "goes with fsdp and hybrid", id="param-dtype-of-ddp"),
        pytest.param({"checkpoint": "sharded"}, "goes with fsdp and hybrid", id="shards-of-ddp"),
        pytest.param({"timeout": 0.0}, "1 second or more", id="timeout"),
        pytest.param({"timeout": float("nan")}, "1 second or more", id="timeout-nan"),
        pytest.param({"timeout": 1e14}, "at most 1e[+]09 seconds", id="timeout-beyond-clocks"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DistributedConfig(**settings)
