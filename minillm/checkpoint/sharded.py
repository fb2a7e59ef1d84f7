"""Tensors that are spread over processes <-> checkpoints, which do not know how many processes wrote them.

Whole files: `whole` gathers what each process has, and `spread_like` gives each its share back. So a run that was saved
by four processes goes on with two, or alone.

Sharded files: each process writes its share through torch.distributed.checkpoint, as safetensors whose headers say
where in the whole tensor a part lies. PyTorch's usual storage keeps that in a pickled file, which would have to be
trusted; nothing here is ever unpickled. Each process reads back what it wrote (`shard_writer.py`). `read_shards` fills
tensors that are spread in any other way.

Read next: `shard_writer.py`, then `run_folder.py`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minillm.checkpoint.files import reason
from minillm.errors import InputError

WRITTEN = re.compile(r"shard-(\d+)-.*\.safetensors")  # as torch.distributed.checkpoint names them
SHARD = re.compile(r"optimiser\.\d+\.safetensors")  # as a checkpoint does


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process has only a share of `tensor`."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # takes half a second, which a run of one process need not spend

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, on its device; one that is spread all processes must ask for alike.

    Cost: each process receives all of it.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def spread_like(value: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor as `own` is spread: this process's share of it, or `value` itself. Nothing is sent.

    Args:
        value: the same on every process, in the shape of `own`; one that is spread already is returned as it is.
    """
    if not is_sharded(own) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that are spread, each process its share; all must call it alike.

    Args:
        folder: empty, on a file system that all processes see.
        tensors: by name, whole ones among them, which one process writes.
    Raises:
        InputError: on all processes, where one of them could not write, or read back something else.

    Cost: each process writes its share, flushes it and reads it again.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    from minillm.checkpoint.shard_writer import ShardWriter  # takes long to import, which only sharded runs need

    try:
        save(dict(tensors), storage_writer=ShardWriter(folder))
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError | SafetensorError):
                raise InputError(
                    f"cannot write {getattr(cause, 'filename', None) or folder}: {reason(cause)}"
                ) from error
        raise


def move_shards(source: Path, target: Path) -> None:
    """Move what `write_shards` wrote into the folder of a checkpoint, under its names.

    Raises:
        OSError: one cannot be moved.
    """
    for path in sorted(source.iterdir()):
        if found := WRITTEN.fullmatch(path.name):
            os.replace(path, target / f"optimiser.{int(found[1]):05d}.safetensors")
    source.rmdir()


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in the folder of a checkpoint; none where its optimiser's state is one file."""
    return sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name))


def read_shards(folder: Path, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the optimiser's tensors by "slot.parameter name", from the shards of a checkpoint.

    Args:
        parameters: of the model by name; a tensor in the shape of its parameter comes spread as that is, and on its
            device. None: all come whole, on the CPU.
    Raises:
        InputError: a file is damaged or missing.

    Cost: each process reads the parts that it needs.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        keys: set[str] = set()
        for path in shard_files(folder):
            with safe_open(path, framework="pt") as file:
                keys.update(file.keys())
        reader = HuggingFaceStorageReader(str(folder))
        known = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Tensor] = {}
        for key in sorted(keys):
            shape, dtype = known[key].size, known[key].properties.dtype  # pyright: ignore[reportAttributeAccessIssue]
            parameter = None if parameters is None else parameters.get(key.partition(".")[2])
            if parameter is not None and parameter.shape == shape:
                tensors[key] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                tensors[key] = torch.zeros(shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no other process takes part, which is what no_dist says
            load(tensors, storage_reader=reader, no_dist=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {folder}: {reason(error)}; the checkpoint is damaged, use another one"
        ) from error
    return tensors
