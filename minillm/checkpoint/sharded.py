"""Tensors that are spread over processes <-> whole ones, as checkpoints hold them.

A checkpoint does not know how many processes wrote it: `whole` gathers what each of them has, and `spread_like` gives
each its share back, so a run that was saved by four processes goes on with two, or alone.

Read next: `run_folder.py`.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


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
        value: the same on every process, in the shape of `own`.
    """
    if not is_sharded(own):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
