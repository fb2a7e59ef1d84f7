"""How the processes that torchrun started become those of a run, and how a restarted run goes on.

Read next: `replicas.py`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from minillm.checkpoint.beginning import beginning, draft_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training.distributed import Processes
from minillm.training.distributed_config import DistributedConfig, is_launched, is_restarted

RUNS = itertools.count()  # of this process: a command may train several models one after the other


def goes_on(folder: RunFolder, overwrite: bool) -> bool:
    """Return whether a command that begins a run goes on with it: torchrun restarted it, and it has a checkpoint.

    Raises:
        InputError: restarts are allowed, and a run may stand in the folder that is not this one.
    """
    if overwrite and is_launched() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise InputError(
            f"--overwrite does not go with torchrun --max-restarts: after a restart nobody could tell the run that "
            f"stood in {folder} from this one; remove the folder, or choose another --out"
        )
    return is_restarted() and bool(folder.steps())


def began(folder: RunFolder, overwrite: bool, processes: Processes) -> AbstractContextManager[RunFolder]:
    """Return the block in which a new run's folder is made; the first process makes it, the others find its draft."""
    return beginning(folder, overwrite) if processes.is_first else nullcontext(draft_of(folder))


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
    store = PrefixStore(f"run {next(RUNS)}", store)
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
