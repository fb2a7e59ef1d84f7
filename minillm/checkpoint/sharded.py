"""Tensors that are spread over processes <-> whole ones, as checkpoints hold them.

A checkpoint does not know how many processes wrote it: `whole` gathers what each of them has, and `spread_like` gives
each its share back, so a run that was saved by four processes goes on with two, or alone.

Read next: `run_folder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process has only a share of `tensor`."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # takes half a second, which a run of one process need not spend

    return isinstance(tensor, DTensor)


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return tensors whole, those that were spread on the CPU; all processes must call it with the same names.

    Args:
        tensors: by name; plain tensors are returned as they are.
        keep: False: take part in gathering, and return nothing. Only the process that writes needs them.

    Cost: each process receives each sharded tensor once, one at a time; who keeps them holds all, in main memory.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]
        if keep:
            gathered[name] = value
    return gathered


def spread_like(value: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor as `own` is spread: this process's share of it, or `value` itself. Nothing is sent.

    Args:
        value: the same on every process, in the shape of `own`.
    """
    if not is_sharded(own):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
