r"""Muon's equation (3) for matrices that are cut over processes: each process gets whole matrices, its share of them.

(3) needs a whole matrix. n matrices of one shape (R, C) lie in S processes, each with h = ceil(R / S) rows of all of
them. One exchange (all-to-all) turns that into ceil(n / S) whole matrices a process, a second one turns it back:

    process 0   rows 0..h-1 of A B C D            process 0   A B whole
    process 1   rows h..    of A B C D     <->    process 1   C D whole

So no matrix is orthogonalised twice, and each process sends and receives 2 (S - 1) / S of its own shards' bytes. To
gather every matrix in every process is to receive S - 1 times those bytes, and to compute S times as much.

Read next: `optim.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def orthogonalised_by_shares(
    matrices: Sequence[DTensor], dtype: torch.dtype, orthogonalised: Callable[[Sequence[Tensor], torch.dtype], Tensor]
) -> list[DTensor]:
    """Return equation (3) of n matrices of one shape, spread as they are.

    Args:
        matrices: each (R, C), cut along the rows over the last axis of one mesh, the same in all places of its other
            axes (hybrid sharding: each group of processes computes all of them).
        dtype: of the products, and of what is sent back.
        orthogonalised: as in `muon.py`, of whole matrices.

    Cost: two exchanges; a process holds its share of whole matrices beside its shards.
    """
    first = matrices[0]
    R, C = first.shape
    mesh = first.device_mesh
    group = mesh.get_group(mesh.ndim - 1)
    S, n = dist.get_world_size(group), len(matrices)
    h, each = -(-R // S), -(-n // S)  # rows of a shard, matrices of a process; both rounded up

    shards = first.to_local().new_zeros(S * each, h, C)  # zeros where the last shard or the last share is short
    for number, matrix in enumerate(matrices):
        local = matrix.to_local()
        shards[number, : len(local)] = local
    whole = exchanged(shards, group).view(S, each, h, C).transpose(0, 1).reshape(each, S * h, C)
    mine = max(0, min(each, n - dist.get_rank(group) * each))  # the last processes may have nothing to do
    results = whole.new_zeros(each, S * h, C, dtype=dtype)
    if mine:
        results[:mine, :R] = orthogonalised(list(whole[:mine, :R]), dtype)
    back = exchanged(results.view(each, S, h, C).transpose(0, 1).reshape(S * each, h, C), group)
    return [
        DTensor.from_local(
            back[number, : len(matrix.to_local())],
            mesh,
            matrix.placements,
            run_check=False,
            shape=matrix.shape,
            stride=matrix.stride(),
        )
        for number, matrix in enumerate(matrices)
    ]


def exchanged(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return what the processes of a group send to this one: `parts` is cut into a piece for each of them."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received
