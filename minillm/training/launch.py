"""How the processes that torchrun started become those of a run, and how a restarted run goes on.

torchrun keeps one store for as long as it lives, and hands it to the processes of every start alike. What those of an
earlier start wrote is still there, their addresses too, and how often this machine's torchrun has restarted is not what
another machine's has. So the processes of a start first agree on a word of their own, under which all else is kept:

    rank r   hello/r = a number that nobody else draws      rank 0   answers every hello that it sees with the word
             waits for the answer to its number                      until every rank has said here, under the word

Read next: `replicas.py`.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from minillm.checkpoint.beginning import beginning, draft_of, take_place
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training.distributed import POLL, Processes
from minillm.training.distributed_config import DistributedConfig, is_launched, is_restarted


def goes_on(folder: RunFolder, overwrite: bool, processes: Processes) -> bool:
    """Return whether a command that begins a run goes on with it: torchrun began it before, and it has a checkpoint.

    Raises:
        InputError: restarts are allowed, and a run may stand in the folder that is not this one.
    """
    if not processes.gathers:
        return False
    if overwrite and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise InputError(
            f"--overwrite does not go with torchrun --max-restarts: after a restart nobody could tell the run that "
            f"stood in {folder} from this one; remove the folder, or choose another --out"
        )
    begun = processes.is_first and bool(folder.steps()) and met()[0].check([_begun(folder)])
    restarted = processes.largest(is_restarted())  # the store may have gone with its machine
    return bool(processes.largest(begun or (restarted and processes.is_first and bool(folder.steps()))))


def began(folder: RunFolder, overwrite: bool, processes: Processes) -> AbstractContextManager[RunFolder]:
    """Return the block in which a new run's folder is made; the first process makes it, the others find its draft."""
    return beginning(folder, overwrite) if processes.is_first else nullcontext(draft_of(folder))


def put_in_place(folder: RunFolder, draft: RunFolder, processes: Processes) -> None:
    """Let the first process put the draft of a run in its place, and all others wait for it."""

    def put() -> None:
        take_place(folder, draft)
        if processes.gathers:
            met()[0].set(_begun(folder), "yes")

    processes.first_then_rest(put, lambda: None)


def _begun(folder: RunFolder) -> str:
    """Return the key that is in torchrun's store when it has begun the run in a folder."""
    return f"minillm/begun/{folder.path.resolve()}"


def placed(device: torch.device) -> torch.device:
    """Return the device of this process: of several GPUs in a machine each process has its own.

    Raises:
        InputError: more processes than GPUs.
    """
    if device.type != "cuda" or not is_launched():
        return device
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise InputError(
            f"torchrun started process {local + 1} on this machine, which has {torch.cuda.device_count()} GPUs; "
            f"lower --nproc-per-node"
        )
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)
    return own


_current: Processes | None = None


@functools.cache
def met() -> tuple[Store, int, int]:
    """Return the store in which the processes leave word, the rank of this one, and how many there are."""
    return next(iter(rendezvous("env://")))


def agreed(store: Store, rank: int, size: int, limit: timedelta) -> str:
    """Return a word that all processes of this start have agreed on, and none of another one.

    Raises:
        InputError: not all of them came within `limit`.
    """
    deadline = time.monotonic() + limit.total_seconds()
    number, word = str(uuid.uuid4()), str(uuid.uuid4())
    if rank != 0:
        store.set(f"minillm/hello/{rank}", number)
        _wait(store, f"minillm/welcome/{number}", deadline, "rank 0")
        word = store.get(f"minillm/welcome/{number}").decode()
        store.set(f"{word}/here/{rank}", "yes")
        return word
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"minillm/hello/{other}"]):
                said = store.get(f"minillm/hello/{other}").decode()  # by a process of an earlier start, it may be
                store.set(f"minillm/welcome/{said}", word)
            if store.check([f"{word}/here/{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > deadline:
            raise InputError(f"waited {limit.total_seconds():.0f} s for rank {min(missing)}, which has not come")
        time.sleep(POLL if missing else 0)
    return word


def _wait(store: Store, key: str, deadline: float, whom: str) -> None:
    """Return when a key is there.

    Raises:
        InputError: it is not at the deadline, a reading of the monotonic clock.
    """
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise InputError(f"waited in vain for {whom}, which has not come")
        time.sleep(POLL)


@contextmanager
def joined(config: DistributedConfig, device: torch.device) -> Iterator[Processes]:
    """Let this process be one of those that torchrun started, or the only one, while the block lasts.

    Args:
        config: of the run.
        device: what to compute on; its kind says how processes talk: nccl between GPUs, gloo between CPUs.
    Raises:
        InputError: a device that not every process can have; whatever the block raises.
        SaidElsewhere: another process ended with an error, which it has said itself.
    """
    global _current
    if not is_launched():
        yield Processes(device=device)
        return
    if _current is not None:  # a run inside a run: fine-tuning's twin from random weights
        yield _current
        return
    device = placed(device)
    limit = timedelta(seconds=2 * config.timeout + 30)  # longer than the watch, which has a name to say
    store, rank, size = met()
    store = PrefixStore(agreed(store, rank, size, limit), store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    processes = Processes(device=device, rank=rank, size=size, store=store, config=config)
    _current = processes
    try:
        with processes.watched():
            yield processes
    finally:
        _current = None
    dist.destroy_process_group()  # not after an error: it could wait for a process that is lost
