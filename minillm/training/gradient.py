r"""The gradient of one batch, however it is cut into micro-batches.

A batch is cut into k micro-batches that are on the device one after the other. Its gradient is

    d/dw [ sum_i total_i / N  +  (1/k) * sum_i extra_i ],     i = 1 .. k the micro-batches, N all their targets

(where the batch has weights, N is the sum of those of its targets). N is counted on the CPU from the prepared batch,
before any backward pass. Dividing each total by it at once, and not the finished gradient afterwards, has three merits:
the numbers that float16 carries backwards have the size of a mean, `extra` needs no correction, and no further pass
over the gradients is made. A mean over k means would weigh a target more where its micro-batch has few of them. `extra`
is averaged, so that a penalty on the weights counts once whatever k is.

Read next: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minillm.checkpoint.sharded import whole
from minillm.data.batch import Batch, has_target
from minillm.objectives.loss import Loss
from minillm.training.distributed import Processes


class Objective(Protocol):
    """Something to be learnt, in two halves: what is drawn at random, and what has a gradient.

    prepare: a pure function of the batch and `batch.seed`. It sees the batch of a whole optimiser step on the CPU,
        before that is cut into micro-batches, so that the cut changes nothing of what is drawn.
    step: the loss of a model on a prepared (micro-)batch.
    """

    def prepare(self, batch: Batch) -> Batch: ...
    def step(self, model: Any, batch: Batch) -> Loss: ...


def targets_in(batch: Batch) -> float:
    """Return N, the number of places in a prepared batch that have a target, or the sum of their weights.

    It is taken on the CPU, so it waits for no device.
    """
    if batch.targets is None:
        raise ValueError("objective.prepare must return a batch with targets; -100 where a place has none")
    there = has_target(batch.targets)
    return int(there.sum()) if batch.weights is None else float(batch.weights[there].double().sum())


def tokens_in(batch: Batch) -> int:
    """Return the number of tokens in a batch without its padding."""
    return batch.tokens.numel() if batch.lengths is None else int(batch.lengths.sum())


def add_gradient(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    *,
    count: float,
    micro_batches: int,
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of a batch to the parameters' `.grad`, by the formula at the head of this file.

    Args:
        model: on `device`, in training mode.
        objective: its `step` gives the loss of a micro-batch.
        batch: prepared, on the CPU; with several processes the same one for all of them.
        count: N, above 0; see `targets_in`.
        micro_batches: k, a divisor of the number of rows and a multiple of the number of processes.
        device: where micro-batches are computed.
        scaler: of a float16 run; the gradients are then scaled by it. None: they are not.
        processes: who takes a share of the micro-batches each; None: this one takes all.
    Returns:
        () on the device: sum_i total_i / N, the mean loss of the batch's targets without extras;
        () on the device: how much more the objective counted than `count`; but for the rounding of weights, anything
            but 0 is its defect.

    Cost: memory of activations as for one micro-batch; nothing waits for the device.
    """
    processes = processes or Processes(device=device)
    total, counted = torch.zeros((), device=device), torch.zeros((), device=device)
    own = processes.own(batch.split(micro_batches))
    for number, part in enumerate(own, start=1):
        if number == len(own):
            processes.layout.before_last()
        loss = objective.step(model, part.to(device))
        share = loss.total / count
        if loss.extra is not None:
            share = share + loss.extra / micro_batches
        (share if scaler is None else scaler.scale(share)).backward()
        total, counted = total + loss.total.detach(), counted + loss.count
    processes.at("summing gradients")
    processes.layout.finish()
    total, counted = processes.summed(torch.stack([total, counted]))
    return total / count, counted - count


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the joint Euclidean norm of all gradients, sqrt(sum over parameters of |g|^2).

    Args:
        parameters: those without a gradient count as zero. Where they are spread, all processes ask alike.
    Returns:
        () on the parameters' device.
    """
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their joint Euclidean norm is at most `limit`.

        g <- g * min(1, limit / (norm + 1e-6))

    Args:
        parameters: those without a gradient are left out.
        norm: as `gradient_norm` has it.
        limit: 0: all stay as they are.
    """
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
