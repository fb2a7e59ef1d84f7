r"""Several processes, on one machine or many, that train one model: who they are, and what they agree on.

    torchrun --nproc-per-node 4 -m minillm pretrain run.toml

Each process runs the same loop. It prepares the whole batch of a step, a pure function of the step, and takes its
micro-batches of it; so it knows the number of targets of all processes without asking, and the batch, its masks and
its padding do not depend on how many there are:

    global batch   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |      k = 8 micro-batches, each with a dropout seed of its own
    of 1 process     0   0   0   0   0   0   0   0
    of 4 processes   0   0   1   1   2   2   3   3

With the same `train.micro_batch_size` any number of processes therefore drops the same elements too, and differs in the
order of float32 sums alone. Without one a process takes its rows at once, and then dropout, which counts from the
first row of a micro-batch, depends on the number of processes.

What they must agree on, they agree on: figures are summed and so the same bits everywhere, a process that is asked to
stop asks all others, and one that fails leaves its reason in the store, which others look into when they lose it.

Read next: `launch.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from minillm.config import dotted
from minillm.data.batch import Batch
from minillm.errors import InputError, SaidElsewhere
from minillm.training.config import TrainConfig, largest_divisor
from minillm.training.distributed_config import DistributedConfig
from minillm.training.watch import Watch, connection

T = TypeVar("T")
POLL = 0.05  # seconds between two looks for another process's word
ERROR, OUTCOME, SETTINGS = "minillm/error", "minillm/outcome", "minillm/settings"  # keys of the store
OF_A_MACHINE = ("train.threads", "data.cache")  # settings that each process may have for itself


class Layout(Protocol):
    """How a model lies over processes, and how their gradients become one.

    before_last: called before the last micro-batch of a step: its backward pass may send gradients.
    finish: called after it; `.grad` then has the sums over all processes.
    settle: called where a forward pass had no backward one, before weights are changed.
    """

    def before_last(self) -> None: ...
    def finish(self) -> None: ...
    def settle(self) -> None: ...


class Alone:
    """One process has all there is."""

    def before_last(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""


class Processes:
    """The processes of a run as one of them sees them; made by `launch.joined`, or without arguments for a run of one.

    rank: of this process, counted from 0. size: how many there are.
    device: of this process.
    layout: of the model that was handed to `lay_out`.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
        config: DistributedConfig | None = None,
    ) -> None:
        """Take what `launch.joined` found out; without a store nothing is ever sent."""
        self.device, self.rank, self.size = device, rank, size
        self.config = config or DistributedConfig()
        self.layout: Layout = Alone()
        self._store = None if store is None else connection(store)
        self._watch = (
            None if store is None else Watch(store, rank=rank, size=size, timeout=self.config.timeout, end=self._end)
        )
        self._turns = 0

    def __str__(self) -> str:
        if not self.gathers:
            return str(self.device)
        return f"{self.size} processes ({self.config.strategy}) on {self.device.type}"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether each process writes its share of a checkpoint."""
        return self.gathers and self.config.checkpoint == "sharded"

    @property
    def gathers(self) -> bool:
        """Whether there is anything to send."""
        return self._store is not None

    def micro_batches(self, train: TrainConfig) -> int:
        """Return k, into how many micro-batches the global batch is cut: the same number for each process.

        Raises:
            InputError: the batch cannot be cut so.
        """
        if train.batch_size % self.size:
            raise InputError(
                f"train.batch_size ({train.batch_size}) must be a multiple of the number of processes ({self.size}); "
                f"try {-(-train.batch_size // self.size) * self.size}"
            )
        rows = train.batch_size // self.size
        at_once = min(train.micro_batch_size or rows, rows)
        if rows % at_once:
            raise InputError(
                f"train.micro_batch_size ({at_once}) must divide the {rows} sequences of each of {self.size} "
                f"processes; try {largest_divisor(rows, at_once)}"
            )
        return train.batch_size // at_once

    def smaller_micro_batch(self, train: TrainConfig) -> str:
        """Return what to say where a process has fewer sequences than `train.micro_batch_size`; empty: it has not."""
        rows, asked = train.batch_size // self.size, train.micro_batch_size
        if asked is None or asked <= rows:
            return ""
        return (
            f"train.micro_batch_size asks for {asked} sequences at once, but each of {self.size} processes has {rows} "
            f"of the batch: {rows} at once"
        )

    def check(self, train: TrainConfig, compute_dtype: torch.dtype) -> None:
        """Raise InputError where a setting does not go with how the model is spread."""
        if not self.gathers or self.config.strategy == "ddp":
            return
        strategy = f"distributed.strategy is {self.config.strategy}"
        if train.compile:
            raise InputError(f"train.compile goes with ddp, and {strategy}; leave one of the two out")
        if compute_dtype == torch.float16:
            raise InputError(f"float16 goes with ddp, and {strategy}; take train.compute_dtype = bfloat16 or float32")

    def own(self, parts: Sequence[Batch]) -> Sequence[Batch]:
        """Return this process's micro-batches of a step."""
        each = len(parts) // self.size
        return parts[self.rank * each : (self.rank + 1) * each]

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, the same bits on each of them; `value` itself may change."""
        if self.gathers:
            dist.all_reduce(value)
        return value

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes have."""
        if not self.gathers:
            return number
        found = torch.tensor([number])  # on the CPU, where gloo compares them: no device is waited for
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def lay_out(self, model: nn.Module) -> None:
        """Lay a model over the processes by the configured strategy, in place, and set `layout`.

        Args:
            model: on this process's device, in the same shape everywhere; the first process's weights are taken.
        Raises:
            InputError: groups that do not go with the number of processes.
        """
        if not self.gathers:
            return
        from minillm.training.replicas import Replicas  # here, so that a run of one process does not load them
        from minillm.training.shards import Shards

        self.layout = Replicas(model, getattr(torch, self.config.reduce_dtype))
        if self.config.strategy != "ddp":
            self.layout = Shards(model, self._mesh(), self.config)

    def _mesh(self) -> DeviceMesh:
        """Return the processes as the strategy groups them."""
        if self.config.strategy == "fsdp":
            return init_device_mesh(self.device.type, (self.size,))
        group = self.config.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        if self.size % group:
            raise InputError(
                f"distributed.shard_size ({group}) must divide the number of processes ({self.size}); "
                f"try {largest_divisor(self.size, group)}"
            )
        shape = (self.size // group, group)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("copies", "shards"))

    def first_then_rest(self, first: Callable[[], T], rest: Callable[[], T]) -> T:
        """Call `first` on the first process, then `rest` on the others, and return what came of it.

        For what is written once and then read by all. The others wait as long as it takes.

        Raises:
            SaidElsewhere: on the others, where `first` raised.
        """
        if not self.gathers:
            return first()
        assert self._store is not None
        self._turns += 1
        key = f"{OUTCOME}/{self._turns}"
        if self.is_first:
            result = first()
            self._store.set(key, "done")
            return result
        self._wait_for(key)
        return rest()

    def agree(self, table: Mapping[str, Any]) -> None:
        """Return where this process has the first one's settings: with others it would wait for what nobody sends.

        Args:
            table: of the configuration, nested as in its file.
        Raises:
            InputError: on another process than the first, for a setting that is not the first one's.
        """
        if not self.gathers:
            return
        store = self._store
        assert store is not None
        own = dotted(table)

        def compare() -> None:
            first = json.loads(store.get(SETTINGS))
            for name in sorted((own.keys() | first.keys()) - set(OF_A_MACHINE)):
                ours, theirs = own.get(name), first.get(name)
                if ours != theirs:
                    raise InputError(
                        f"rank {self.rank} has {name} = {ours}, and rank 0 {theirs}; say the same line on every machine"
                    )

        self.first_then_rest(lambda: store.set(SETTINGS, json.dumps(own)), compare)
        self.largest(0)  # nobody goes on, and writes what nobody takes away, before all have compared

    def at(self, stage: str, step: int | None = None) -> None:
        """Note how far this process has come; see `Watch.at`."""
        if self._watch is not None:
            self._watch.at(stage, step)

    def _wait_for(self, key: str) -> None:
        """Return when another process has set `key`; raise where one has failed."""
        assert self._store is not None
        while not self._store.check([key]):
            if (word := self._word_left()) is not None:
                raise SaidElsewhere(word)
            time.sleep(POLL)

    def _leave_word(self, text: str) -> bool:
        """Tell the other processes why this one ends; return whether none of them has said the same before."""
        assert self._store is not None
        mine = f"{self.rank}\n{text}"
        stands = self._store.compare_set(ERROR, "", mine).decode()
        return stands == mine or stands.partition("\n")[2] != text

    def _word_left(self) -> str | None:
        """Return why another process ended, where it said so."""
        assert self._store is not None
        return self._store.get(ERROR).decode().partition("\n")[2] if self._store.check([ERROR]) else None

    def _end(self, text: str) -> None:
        """End this process from the thread that watches the others: the main one waits, and cannot be woken."""
        if self._leave_word(text):
            print(f"minillm: {text}", file=sys.stderr, flush=True)
        os._exit(2)

    def _explain_loss(self, error: RuntimeError) -> None:
        """Raise what is behind a failed collective, where another process is: it said why it ends, or is silent.

        Raises:
            InputError: a process is lost.
            SaidElsewhere: another process has said this error.
        """
        assert self._watch is not None
        try:
            lost = [] if self._word_left() else self._watch.silent()  # takes seconds, in which word may come
            word = self._word_left()
        except RuntimeError:  # the store is out of reach
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InputError(
                f"the torchrun that keeps the store at {place} has ended, and a process with it"
            ) from error
        if word is not None:
            raise SaidElsewhere(word) from error
        if lost:
            text = (
                f"{'; '.join(lost)}; go on from the last checkpoint with --resume, or let torchrun --max-restarts do it"
            )
            self._leave_word(text)
            raise InputError(text) from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let the processes know of each other's errors while the block lasts; what is raised in it is passed on.

        Raises:
            InputError: a process is lost.
            SaidElsewhere: another process has said this error.
        """
        assert self._watch is not None
        self._watch.start()
        try:
            yield
        except SaidElsewhere:
            raise
        except InputError as error:
            if self._leave_word(str(error)):
                raise
            raise SaidElsewhere(str(error)) from error
        except Exception as error:
            if isinstance(error, RuntimeError):  # gloo and nccl raise it when they lose a process
                self._explain_loss(error)
            self._leave_word(f"rank {self.rank} ended with {type(error).__name__}: {error}")
            raise
        finally:
            self._watch.stop()
