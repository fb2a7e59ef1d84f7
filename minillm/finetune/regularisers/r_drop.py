r"""R-Drop: two passes over the same batch, with different dropout, have to agree.

    L = 1/2 (CE_1 + CE_2) + alpha * 1/2 (KL(p_1 || p_2) + KL(p_2 || p_1))         per target

with gradients through both sides. What p is follows from the task:

    multi_label   a coin per label                              KL of the two coins
    regression    a normal of variance 1 around z               KL = 1/2 (z_1 - z_2)^2, in the unit of the loss
    all others    softmax over classes, tags, places, tokens    KL = sum_k p_k (log p_k - log q_k)

Places without a target (padding, control symbols and continuation pieces in tagging) have no KL, and a target's weight
weighs both terms: the sums stay sums over the same targets, and k micro-batches give the gradient of one batch.

Cost: two passes forward and backward in place of one, activations of both in memory. Without dropout in the model it is
the task's own loss at twice the cost.

Source: Liang et al. (2021), arXiv:2106.14448, whose equation 4 has the sum of the two losses and not their mean: alpha
here is half of alpha there.

Read next: `adversarial.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import Batch, has_target
from minillm.data.sampler import mix
from minillm.objectives.loss import Loss
from minillm.training.gradient import Objective

SECOND = 5  # what the seed of the second pass is mixed with


class TwoHalves(Objective, Protocol):
    """A task whose loss can be taken apart; see `tasks/base.py`."""

    name: Any

    def outputs(self, model: Any, batch: Batch) -> Tensor: ...
    def loss(self, outputs: Tensor, batch: Batch) -> Loss: ...


class RDrop:
    """An objective that asks two passes of a task to agree."""

    def __init__(self, task: TwoHalves, alpha: float) -> None:
        """Stand around a task.

        Args:
            alpha: weight of the divergence, above 0.
        """
        self.task, self.alpha = task, alpha

    def prepare(self, batch: Batch) -> Batch:
        """Return what the task prepares."""
        return self.task.prepare(batch)

    def step(self, model: Any, batch: Batch) -> Loss:
        """Return the sum of the formula over the targets, and their count; without gradients the task's own loss."""
        if not torch.is_grad_enabled():
            return self.task.step(model, batch)
        again = dataclasses.replace(batch, seed=None if batch.seed is None else mix(batch.seed, SECOND))
        first, second = self.task.outputs(model, batch), self.task.outputs(model, again)
        loss, other = self.task.loss(first, batch), self.task.loss(second, batch)
        apart = self._summed(divergence(self.task.name, first, second).flatten(), batch)
        return dataclasses.replace(loss, total=0.5 * (loss.total + other.total) + self.alpha * apart)

    def _summed(self, apart: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum over the targets of divergences at all places, or at those with a target alone."""
        assert batch.targets is not None
        there = has_target(batch.targets)
        weights = there.float() if batch.weights is None else torch.where(there, batch.weights, 0.0)
        if len(apart) != there.numel():
            return (apart * weights[there]).sum()
        return torch.where(there.flatten(), apart * weights.flatten(), 0.0).sum()


def divergence(task: str, first: Tensor, second: Tensor) -> Tensor:
    """Return 1/2 (KL(p_1 || p_2) + KL(p_2 || p_1)) of every target, float32.

    The two logarithms cancel to one product, which is exact where p and q are close:

        1/2 sum_k (p_k - q_k)(log p_k - log q_k)

    Args:
        first, second: (..., K) logits.
    Returns:
        (..., K) for multi_label and regression, (...) for all others.
    """
    first, second = first.float(), second.float()
    match task:
        case "multi_label":  # log p - log q and log(1 - p) - log(1 - q) have the difference of the logits between them
            return 0.5 * (first.sigmoid() - second.sigmoid()) * (first - second)
        case "regression":
            return 0.5 * (first - second).square()
        case _:
            p, q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
            return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)
