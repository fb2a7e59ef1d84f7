"""Runs that one process and several take alike; torchrun executes this file, and the tests import it for the truth.

python -m torch.distributed.run --nproc-per-node 2 distributed_cases.py OUT NAME ... writes OUT/NAME.N/ as a run folder.
"""

import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minillm.checkpoint.run_folder import RunFolder
from minillm.checkpoint.sharded import is_sharded
from minillm.data.batch import Batch
from minillm.errors import InputError, SaidElsewhere
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.masked_lm import MaskedLM
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.distributed import Processes
from minillm.training.distributed_config import DistributedConfig
from minillm.training.interrupt import SIGNALS
from minillm.training.launch import joined
from minillm.training.trainer import Trainer

CPU = torch.device("cpu")
ROWS, TOKENS, WORDS = 8, 12, 29
ADAMW = OptimConfig(learning_rate=0.01, warmup_steps=2)
MUON = OptimConfig(name="muon", learning_rate=0.02, adamw_learning_rate=0.01, warmup_steps=2)

STEADY = dataclasses.replace(MUON, schedule="constant")  # does not look at max_steps


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run: kind of model, optimiser, how it is spread, settings of [train] and of the model."""

    kind: str = "decoder"
    optim: OptimConfig = ADAMW
    distributed: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    hold: str | None = None  # what rank 1 does at step 3: "sleep", "stop", "die", "fail", "full", "lie" or "mistake"
    after: str | None = None  # the case that it goes on with, run before by as many processes
    no_room_at: int | None = None  # the step at which the first process cannot make the folder for shares


FSDP, HYBRID = {"strategy": "fsdp"}, {"strategy": "hybrid", "shard_size": 2}
SHARDED = FSDP | {"checkpoint": "sharded"}
BUSY = {"micro_batch_size": 1, "ema_decay": 0.9}
EMA = {"ema_decay": 0.9}
HALVES = BUSY | {"eval_every": 3}
DROPS = {"dropout": 0.2, "attention_dropout": 0.1}
CASES = {
    "ddp": Case(),
    "ddp-masked-muon": Case(kind="encoder", optim=MUON, train=BUSY, model=DROPS),
    "fsdp": Case(distributed=FSDP),
    "fsdp-masked-muon": Case(kind="encoder", optim=MUON, distributed=FSDP, train=BUSY, model=DROPS),
    "fsdp-recomputed": Case(distributed=FSDP, train={"checkpoint_activations": True, "micro_batch_size": 2}),
    "fsdp-sgd": Case(distributed=FSDP, optim=OptimConfig(name="sgd", learning_rate=0.1, warmup_steps=2)),
    "float32-ddp": Case(kind="encoder", optim=MUON, train=BUSY, dtype=torch.float32),
    "float32-fsdp": Case(kind="encoder", optim=MUON, train=BUSY, distributed=FSDP, dtype=torch.float32),
    "narrow-ddp": Case(distributed={"reduce_dtype": "bfloat16"}, dtype=torch.float32),
    "narrow-fsdp": Case(
        distributed=FSDP | {"param_dtype": "bfloat16", "reduce_dtype": "bfloat16"}, dtype=torch.float32, train=EMA
    ),
    "hybrid-masked-muon": Case(kind="encoder", optim=MUON, distributed=HYBRID, train=BUSY, model=DROPS),
    **{hold: Case(hold=hold, distributed={"timeout": 2.0}) for hold in ("sleep", "stop", "die", "fail", "mistake")},
    "full": Case(hold="full", distributed=SHARDED),
    "sharded-half": Case(
        kind="encoder", optim=STEADY, distributed=SHARDED, train=HALVES | {"max_steps": 3}, model=DROPS
    ),
    "sharded-rest": Case(kind="encoder", optim=STEADY, distributed=SHARDED, train=HALVES, model=DROPS),
    "half": Case(kind="encoder", optim=STEADY, distributed=FSDP, train=HALVES | {"max_steps": 3}, model=DROPS),
    "rest": Case(kind="encoder", optim=STEADY, distributed=FSDP, train=HALVES, model=DROPS),
    "no-room": Case(distributed=SHARDED, no_room_at=2, train={"keep_checkpoints": 9}),
    "lie": Case(hold="lie", distributed=SHARDED, train={"keep_checkpoints": 9}),
}
for kind in ("", "sharded-"):
    CASES[f"{kind}unbroken"] = CASES[f"{kind}rest"]
    CASES[f"{kind}resumed"] = dataclasses.replace(CASES[f"{kind}rest"], after=f"{kind}half")


class Loader:
    """Rows of falling length: the first process gets many targets, the last one few."""

    def __init__(self, hold: str | None = None) -> None:
        self.hold = hold

    def batch(self, step: int) -> Batch:
        match self.hold if step == 2 else None:
            case "sleep":
                time.sleep(1000)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise RuntimeError("a defect")
            case "full":  # no file of this process may grow past this: writing fails as on a full disk
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            case "lie":
                lie_once()
            case "mistake":
                raise InputError("a mistake")
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(4, WORDS, (ROWS, TOKENS), generator=generator)
        lengths = torch.tensor([12, 12, 11, 9, 5, 3, 2, 1])
        targets = torch.randint(WORDS, (ROWS, TOKENS), generator=generator)
        batch = Batch(tokens=tokens, lengths=lengths, targets=targets, seed=1000 * step)
        return dataclasses.replace(batch, targets=targets.masked_fill(~batch.real(), -100))


def lie_once() -> None:
    """Let the disk of this process keep other bytes of its next share than it was given."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    real = HuggingFaceStorageWriter.write_data

    def lying(self: Any, plan: Any, planner: Any) -> Any:
        HuggingFaceStorageWriter.write_data = real
        done = real(self, plan, planner)
        for result in done.wait():
            path = Path(self.path) / result.storage_data.relative_path
            path.write_bytes(path.read_bytes()[:-40] + bytes(40))
        return done

    HuggingFaceStorageWriter.write_data = lying


def trainer_of(case: Case, folder: RunFolder, processes: Processes) -> Trainer:
    """Return the trainer of a case; weights and data do not depend on the processes."""
    shape = {"vocab_size": WORDS, "context": TOKENS, "num_layers": 2, "width": 10, "num_heads": 2, "norm": "rms_norm"}
    torch.manual_seed(3 + processes.rank)  # another one on each process: the first one's weights must be taken
    model = build_model(ModelConfig(kind=case.kind, **(shape | case.model))).to(case.dtype)
    config = ObjectiveConfig(name="masked_lm" if case.kind == "encoder" else "causal_lm", rate=0.4)
    masked = MaskedLM(config, vocab_size=WORDS, mask_token=3, control_tokens=[0, 1, 2, 3])
    objective = masked if case.kind == "encoder" else CausalLM(config)

    def evaluate(model: Any) -> dict[str, float]:
        loss = objective.step(model, objective.prepare(Loader().batch(999)))
        return {"loss": float(loss.total / loss.count)}

    settings = {"batch_size": ROWS, "max_steps": 6, "eval_every": 2, "checkpoint_every": 3, "log_every": 1}
    trainer = Trainer(
        model,
        objective,
        Loader(case.hold if processes.rank == 1 else None),
        train=TrainConfig(**(settings | case.train)),
        optim=case.optim,
        folder=folder,
        evaluate=evaluate,
        device=CPU,
        compute_dtype=case.dtype,
        processes=processes,
    )
    if hasattr(trainer.optimiser, "product_dtype"):
        trainer.optimiser.product_dtype = case.dtype  # bfloat16 products make rounding visible
    return trainer


def run(case: Case, path: Path, processes: Processes) -> None:
    """Take a case's steps, from the beginning or, where the folder has a checkpoint, from there."""
    folder = RunFolder(path)
    if case.after is not None:
        before = path.with_name(f"{case.after}.{processes.size}")
        processes.first_then_rest(lambda: shutil.copytree(before, path), lambda: None)
    begun = bool(folder.steps())
    if processes.is_first and not begun:
        folder.create()
        if case.no_room_at is not None:
            folder.shards_of(case.no_room_at).touch()  # a file stands in its place
    trainer = trainer_of(case, folder, processes)
    if begun:
        trainer.resume()
    trainer.fit()


def write_head_rule(path: Path, processes: Processes) -> None:
    """Write which weights are whole where an objective needs them: between the forward and the backward pass."""
    trainer = trainer_of(CASES["fsdp"], RunFolder(path), processes)
    model = trainer.model
    spread = {name for name, weight in model.named_parameters() if is_sharded(weight)}
    names = [name for name, _ in model.named_parameters()]
    model(Loader().batch(0).tokens)
    whole = [name for name, weight in model.named_parameters() if not is_sharded(weight)]
    table = {"all": names, "spread": sorted(spread), "whole": whole, "usable": not is_sharded(model.output_weight)}
    if processes.is_first:
        path.write_text(json.dumps(table))


def write_stop(path: Path, processes: Processes) -> None:
    """Stop a run by a signal to rank 1, and write what each process sees when its `fit` has returned."""
    folder = RunFolder(path)
    if processes.is_first:
        folder.create()
    trainer = trainer_of(
        dataclasses.replace(CASES["ddp"], train={"checkpoint_every": 0, "eval_every": 0}), folder, processes
    )
    save = RunFolder.save

    def slow_save(*words: Any, **options: Any) -> Path:
        time.sleep(1.0)
        return save(*words, **options)

    def signalled(trainer: Trainer) -> None:
        if processes.rank == 1 and trainer.state.step == 3:
            signal.raise_signal(signal.SIGTERM)

    RunFolder.save = slow_save
    trainer.after_step.append(signalled)
    summary = trainer.fit()
    RunFolder.save = save
    ignored = all(signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS)
    table = {"step": summary.steps, "saved": folder.steps(), "signal": summary.signal, "ignored": ignored}
    path.with_name(f"{path.name}.{processes.rank}.json").write_text(json.dumps(table))


def main(out: Path, names: list[str]) -> None:
    """Take the steps of some cases as one of the processes that torchrun started."""
    torch.set_num_threads(1)
    for name in names:
        if name == "head-rule":
            with joined(DistributedConfig(**FSDP), CPU) as processes:
                write_head_rule(out / f"head-rule.{processes.size}.json", processes)
            continue
        if name == "stopped":
            with joined(DistributedConfig(), CPU) as processes:
                write_stop(out / f"stopped.{processes.size}", processes)
            continue
        case = CASES[name]
        try:
            with joined(DistributedConfig(**case.distributed), CPU) as processes:
                run(case, out / f"{name}.{processes.size}", processes)
        except SaidElsewhere:
            sys.exit(2)
        except InputError as error:
            print(f"rank {processes.rank} says: {error}", file=sys.stderr, flush=True)
            sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
