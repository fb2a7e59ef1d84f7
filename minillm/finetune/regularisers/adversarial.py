r"""Adversarial training: the loss where a small shift of the embedding output hurts most, beside the loss as it is.

    g_0 = dL/de at e                     e (B, T, C) the embedding output; each example of the batch by itself
    delta_1 = eps * g_0 / |g_0|_2        norms over an example's real tokens and C, 0 in padding            FGM
                                         (of texts packed into a row, `segments`, each is an example)

    delta_{k+1} = P(delta_k + a * g_k / |g_k|_2),   g_k = dL/de at e + delta_k                              PGD, K steps
    P scales back to |delta| = eps where it is longer;   a = eps / K * 3/2 for K > 1, eps for K = 1

    loss = 1/2 (L(e) + L(e + delta_K))

The mean of the two and not their sum, so that learning rate, clipping and the logged loss keep their meaning.

Three things that the widespread version, which shifts the embedding *table* by the norm of its gradient, gets wrong:
examples of a batch do not share a norm here; a frozen table, as with adapters or a trained head alone, makes no
difference; and the gradient is asked for by itself (`torch.autograd.grad`), so that what earlier micro-batches left in
`.grad` plays no part and nothing is added to it. Both passes have the same dropout: the shift answers to the model that
it is tried on.

eps is in the unit of e. Behind an embedding norm a token's vector has length sqrt(C); without one it can be ten times
shorter, and eps must shrink with it.

Cost: K + 1 passes forward in place of one, and K more backward passes that stop short of the weights.

Source: Miyato et al. (2017), arXiv:1605.07725 (FGM); Madry et al. (2018), arXiv:1706.06083 (PGD).

Read next: `config.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from minillm.data.batch import Batch
from minillm.finetune.embedding_output import changed_embeddings
from minillm.objectives.loss import Loss
from minillm.training.gradient import Objective


class Adversarial:
    """An objective that also looks at the worst neighbour of each example."""

    def __init__(self, objective: Objective, epsilon: float, steps: int = 1) -> None:
        """Stand around an objective.

        Args:
            objective: the task, or a regulariser around it; its model has a `backbone`.
            epsilon: length of the shift of an example, above 0.
            steps: K; 1: FGM.
        """
        self.objective, self.epsilon, self.steps = objective, epsilon, steps
        self.stride = epsilon if steps == 1 else 1.5 * epsilon / steps

    def prepare(self, batch: Batch) -> Batch:
        """Return what the objective prepares."""
        return self.objective.prepare(batch)

    def step(self, model: Any, batch: Batch) -> Loss:
        """Return the mean of the two losses, summed over the targets; without gradients the objective's own loss.

        Raises:
            ValueError: the batch has no seed, so that the passes could not drop alike.
        """
        if not torch.is_grad_enabled():
            return self.objective.step(model, batch)
        if batch.seed is None:
            raise ValueError("passes drop alike by batch.seed, and this batch has none; take it from a loader")
        clean, attacked = self.losses(model, batch)
        return dataclasses.replace(clean, total=0.5 * (clean.total + attacked.total))

    def losses(self, model: Any, batch: Batch) -> tuple[Loss, Loss]:
        """Return the loss as it is and the loss at the shift, both with gradient to the parameters."""
        clean, gradient = self._at(model, batch, None, keep=True)
        delta = self._moved(torch.zeros_like(gradient), gradient, batch)
        for _ in range(self.steps - 1):
            _, gradient = self._at(model, batch, delta, keep=False)
            delta = self._moved(delta, gradient, batch)
        with changed_embeddings(model.backbone, lambda e: e + delta):
            return clean, self.objective.step(model, batch)

    def _at(self, model: Any, batch: Batch, delta: Tensor | None, *, keep: bool) -> tuple[Loss, Tensor]:
        """Return the loss at a shift (None: none) and its gradient for the shift, (B, T, C).

        Args:
            keep: the loss will have a backward pass of its own.
        """
        point = None if delta is None else delta.clone().requires_grad_()

        def shifted(e: Tensor) -> Tensor:
            nonlocal point
            if point is None:  # several passes of one step share a shift
                point = torch.zeros_like(e).requires_grad_()
            return e + point

        with changed_embeddings(model.backbone, shifted):
            loss = self.objective.step(model, batch)
        assert point is not None
        (gradient,) = torch.autograd.grad(loss.total, point, retain_graph=keep)
        return loss, gradient

    def _moved(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """Return the next shift: a stride along the gradient, scaled back where it is longer than epsilon."""
        gradient = gradient.masked_fill(~batch.real()[:, :, None], 0.0)
        tiny = torch.finfo(gradient.dtype).tiny  # a gradient of 0 moves nothing
        delta = delta + self.stride * gradient / _lengths(gradient, batch.segments).clamp(min=tiny)
        return delta * (self.epsilon / _lengths(delta, batch.segments).clamp(min=self.epsilon))


def _lengths(x: Tensor, segments: Tensor | None) -> Tensor:
    """Return the Euclidean norm of each example, (B, 1, 1) for (B, T, C); with segments, of each token's, (B, T, 1)."""
    if segments is None:
        return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    of_tokens = torch.linalg.vector_norm(x, dim=2)  # (B, T)
    together = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    return torch.linalg.vector_norm(of_tokens[:, None, :] * together, dim=2, keepdim=True)
