r"""Sharding by PyTorch's FSDP2: every process holds a share of weights, gradients and optimiser state.

A block's weights are gathered right before they are used, forward and backward, and given back afterwards; its gradient
is summed and left where its share of the weights lives (Zhao et al. 2023, arXiv:2304.11277). Each parameter is cut
along its first axis, as `torch.chunk` cuts it.

    fsdp      one group of all W processes:  a process holds 1 / W of everything
    hybrid    groups of S processes:         a process holds 1 / S; the groups hold the same, and sum their gradients

The rule of the head: embeddings, final norm and output weight belong to the root, which keeps its weights from the
forward pass to the end of the backward one (`reshard_after_forward=False`). An objective multiplies by
`model.output_weight` after the model's forward pass has ended: a head that is sharded by itself, or a root that gives
its weights back at once, would be a DTensor there, amid plain tensors.

Read next: `watch.py`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from minillm.training.distributed_config import DistributedConfig


class Shards:
    """Cuts a model over the processes of a mesh; see `distributed.Layout`."""

    def __init__(self, model: Any, mesh: DeviceMesh, config: DistributedConfig) -> None:
        """Shard the model in place: its parameters become DTensors, their names stay.

        Args:
            model: the same weights on each process, on its final device; `model.blocks` are sharded one by one, all
                else with the root.
            mesh: one axis to shard over; or two, the first for the copies.
            config: its dtypes are read.
        """
        # Raised for every block, since its output is a view; nothing here writes into a block's output.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        self.model = model
        narrow = {"float32": None, "bfloat16": torch.bfloat16}  # None: that of the weights, which are float32
        reduce_dtype = narrow[config.reduce_dtype]
        if config.param_dtype == "bfloat16" and reduce_dtype is None:
            reduce_dtype = torch.float32
        policy = MixedPrecisionPolicy(
            param_dtype=narrow[config.param_dtype],
            reduce_dtype=reduce_dtype,
            cast_forward_inputs=False,  # the model casts activations itself
        )
        alone = mesh.size(-1) == 1  # gathering anew for the backward pass would save no memory
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not alone)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        if mesh.size() > 1:
            for module in self._sharded():
                module.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the targets of all processes
                module.set_force_sum_reduction_for_comms(True)
        model.set_requires_gradient_sync(False)

    def _sharded(self) -> list[FSDPModule]:
        return [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    def before_last(self) -> None:
        """Let the next backward pass, the step's last, sum the gradients; those before it keep them whole."""
        self.model.set_requires_gradient_sync(True)

    def finish(self) -> None:
        """Go back to gradients that stay where they are."""
        self.model.set_requires_gradient_sync(False)

    def settle(self) -> None:
        """Let no process keep gathered weights, which a forward pass without a backward one leaves with the root.

        They would outlive a change of the shards: an optimiser step, or the mean of the weights swapped in.
        """
        for module in self._sharded():
            module.reshard()
