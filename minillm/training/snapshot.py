"""A moment of a run, whole: taken as copies that a thread can write, and put back so that training goes on bit for bit.

Read next: `trainer.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minillm.checkpoint.files import explained
from minillm.checkpoint.native import put_by_name, put_tensors, tensors_of
from minillm.checkpoint.run_folder import Checkpoint, RunFolder
from minillm.checkpoint.sharded import write_shards
from minillm.errors import InputError, SaidElsewhere
from minillm.training.config import TrainConfig
from minillm.training.optim import optimiser_tensors, put_optimiser_tensors
from minillm.training.random_state import put_random_tensors, random_tensors
from minillm.training.saving import copies
from minillm.training.state import RunState

if TYPE_CHECKING:
    from minillm.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a checkpoint holds, on the CPU; later steps do not change it.

    model, optimiser, random: tensors by name. unaveraged: the weights whose means `model` has; None: it has no means.
    config: of the model. state: counters and the like, as JSON holds them.
    shards: folder where the processes have written their shares of the optimiser's tensors; None: `optimiser` has them.
    score: how good an evaluation at this step found it, see `Judge`; None: there was none. best: none was better.
    """

    step: int
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    unaveraged: Mapping[str, Tensor] | None
    config: Any
    state: Mapping[str, Any]
    score: list[float] | None
    best: bool
    shards: Path | None = None

    def write(self, folder: RunFolder, train: TrainConfig) -> None:
        """Save it as a checkpoint; raises as `RunFolder.save` does."""
        folder.save(
            self.step,
            self.model,
            self.config,
            self.optimiser,
            self.state,
            self.best,
            unaveraged=self.unaveraged,
            random=self.random,
            score=self.score,
            keep=train.keep_checkpoints,
            keep_best=train.keep_best,
            keep_every=train.keep_every,
            shards=self.shards,
        )


def take(trainer: Trainer) -> Snapshot:
    """Return the moment at which a trainer stands; of several processes the first one has the tensors.

    Cost: memory of the host for all of it, and one pass over it.
    """
    step, ema, keep = trainer.state.step, trainer.ema, trainer.processes.is_first
    scaler = None if trainer.scaler is None else trainer.scaler.state_dict()
    more = {"optimiser": trainer.optim.name, "scaler": scaler, "ema_decay": trainer.train.ema_decay}
    slots, shards = optimiser_tensors(trainer.optimiser, trainer.model), None
    if trainer.processes.shards:
        slots, shards = {}, _written(slots, trainer)
    return Snapshot(
        step=step,
        model=copies(tensors_of(trainer.model) | ({} if ema is None else ema.tensors()), keep=keep),
        optimiser=copies(slots, keep=keep),
        shards=shards,
        random=random_tensors(trainer.device),  # of the first process; all take it over
        unaveraged=None if ema is None else copies(ema.weights(), keep=keep),
        config=trainer.model.config,
        state=trainer.state.table() | more,
        score=trainer.judge.score if trainer.judge.step == step else None,
        best=trainer.judge.step == step and trainer.state.since_best == 0,
    )


def _written(slots: Mapping[str, Tensor], trainer: Trainer) -> Path:
    """Let each process write its share of the optimiser's tensors, and return the folder.

    Raises:
        InputError: on all of them alike, where one could not: a write that failed is no reason to end the run.
    """
    place, first = trainer.folder.shards_of(trainer.state.step), trainer.processes.is_first
    refused: InputError | None = None
    try:
        if first:
            with explained(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
    except InputError as error:
        refused = error
    if trainer.processes.largest(refused is not None):
        raise refused or SaidElsewhere(f"the first process could not make {place}")
    try:
        write_shards(place, slots)
    except InputError:
        if first:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return place


def put(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Give a trainer all that a checkpoint holds.

    Raises:
        InputError: the checkpoint's model, optimiser or decay of the running mean is another one, or it is damaged.
    """
    folder, state = checkpoint.folder, checkpoint.state
    checkpoint.check_model(trainer.model.config)
    if state.get("optimiser") != trainer.optim.name:
        raise InputError(
            f"{folder / 'state.json'} is of another run: it was saved with {state.get('optimiser')}, optim.name is "
            f"{trainer.optim.name}; resume with the optimiser that it was trained with"
        )
    if state.get("ema_decay") != trainer.train.ema_decay:
        raise InputError(
            f"{folder / 'state.json'} is of another run: it was saved with train.ema_decay "
            f"{state.get('ema_decay') or 'none'}, asked for is {trainer.train.ema_decay or 'none'}; "
            f"resume with what it was trained with"
        )
    tensors, path = checkpoint.model_tensors(), folder / "model.safetensors"
    put_tensors(trainer.model, tensors, source=path)
    if trainer.ema is not None:
        weights = trainer.ema.weights()
        trainer.ema.put({name: tensors[name] for name in weights}, source=path)
        put_by_name(weights, checkpoint.unaveraged_tensors(), source=folder / "unaveraged.safetensors")
    slots = checkpoint.optimiser_tensors(dict(trainer.model.named_parameters()))
    put_optimiser_tensors(trainer.optimiser, trainer.model, slots, source=folder / "optimiser.safetensors")
    trainer.state = RunState.from_table(state, source=folder / "state.json")
    if trainer.scaler is not None and state.get("scaler"):
        trainer.scaler.load_state_dict(state["scaler"])
    put_random_tensors(checkpoint.random_tensors(), trainer.device, source=folder / "random.safetensors")
