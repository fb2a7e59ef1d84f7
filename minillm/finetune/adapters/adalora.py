r"""AdaLoRA: LoRA as a singular value decomposition, whose rank moves during training to the weights that need it.

    y = W x + b + (alpha / r) B (E * (A dropout(x))),     A (r, in),  E (r, 1),  B (out, r)                (1)

E begins at 0, so at the start y is what it was; A and B are drawn from N(0, 0.02^2). A penalty keeps the rows of A and
the columns of B near orthonormal, so that E has the part of singular values; it is added to the loss in training:

    lambda * mean over all A and B of |A A^T - I|_F and |B^T B - I|_F                                      (2)

Each element p of A, E and B has a sensitivity |p dL/dp|; its running mean I' and the running mean U' of how far it
strays from that mean make its score, and a triplet (row i of A, E_i, column i of B) has that of its parts:

    I' <- beta1 I' + (1 - beta1) |p dL/dp|,    U' <- beta2 U' + (1 - beta2) ||p dL/dp| - I'|,    s(p) = I' U'    (3)
    S_i = s(E_i) + mean over j of s(A_ij) + mean over j of s(B_ji)                                         (4)

Over T steps the number of triplets that are kept falls from b_0 = n r to b_T = n * target_rank, n the number of
targets:

    b(t) = b_0                                                 t <= t_i = round(initial_fraction T)
           b_T + (b_0 - b_T) (1 - (t - t_i) / (t_f - t_i))^3   t <= t_f = T - round(final_fraction T)      (5)
           b_T                                                 after that

Past t_i, every `prune_every` steps, and past t_f after each step, the E of all but the b(t) triplets with the highest
scores become 0. Until t_f the scores are renewed, and a pruned E may grow back and win its place; then the choice
stands.

Trainable: r (in + out + 1) for each target. The running means of (3) are buffers, so they are in every checkpoint, and
t is the trainer's: a resumed run prunes as if it had not stopped. Pruned triplets stay in the file, as zeros. With
`train.ema_decay` the mean of E is judged and saved: it becomes 0 where E does, and follows where E grows back.

Source: Zhang et al. (2023), arXiv:2303.10512, equations 3, 4 and 7-12 and algorithm 1, which takes the sensitivity at
the weights where the gradient was taken. Equation 4 squares the norms of (2) and adds them up; the mean of them as they
are is PEFT's. PEFT takes the sensitivity after the step, divides alpha by r + 1e-5, and calls none of this from its
trainer.

Read next: `bottleneck.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minillm.data.batch import Batch
from minillm.finetune.adapters.config import AdaLoRAConfig
from minillm.finetune.adapters.dropout import AdapterDropout
from minillm.finetune.adapters.lora import make_dropout
from minillm.finetune.adapters.places import Mergeable, Part, parts_of, target_places
from minillm.model.layers import Linear
from minillm.model.transformer import Transformer
from minillm.objectives.loss import Loss
from minillm.training.gradient import Objective

if TYPE_CHECKING:
    from minillm.training.trainer import Trainer

INIT_STD = 0.02  # of A and B


class AdaLoRA(Mergeable):
    """The update of one linear layer, with the running means of its sensitivity."""

    config: AdaLoRAConfig

    def __init__(self, base: Linear, config: AdaLoRAConfig, dropout: AdapterDropout | None) -> None:
        super().__init__(config)
        self.scale, self.dropout = config.alpha / config.rank, dropout
        self.A = Linear(base.in_features, config.rank, bias=False)
        self.E = nn.Parameter(torch.zeros(config.rank, 1))
        self.B = Linear(config.rank, base.out_features, bias=False)
        nn.init.normal_(self.A.weight, std=INIT_STD)
        nn.init.normal_(self.B.weight, std=INIT_STD)
        for letter, parameter in self.factors().items():
            self.register_buffer(f"sensitivity_{letter}", torch.zeros_like(parameter))
            self.register_buffer(f"uncertainty_{letter}", torch.zeros_like(parameter))

    def factors(self) -> dict[str, Tensor]:
        """Return A (r, in), E (r, 1) and B (out, r) by their letters."""
        return {"A": self.A.weight, "E": self.E, "B": self.B.weight}

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return equation (1), (..., out) for x (..., in)."""
        y = inner(x)
        x = x if self.dropout is None else self.dropout(x)
        return y + self.scale * self.B(self.A(x) * self.E[:, 0].to(x.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W + (alpha / r) B (E * A), and b."""
        A, E, B = (factor.to(weight.dtype) for factor in self.factors().values())
        return weight + self.scale * (B @ (E * A)), bias

    def distance_from_orthonormal(self) -> Tensor:
        """Return |A A^T - I|_F + |B^T B - I|_F, () float32."""
        A, B = self.A.weight, self.B.weight
        one = torch.eye(A.shape[0], device=A.device)
        return torch.linalg.matrix_norm(A @ A.T - one) + torch.linalg.matrix_norm(B.T @ B - one)

    @torch.no_grad()
    def observe(self) -> None:
        """Renew the running means by equation (3) from the gradients that are there; none that overflowed counts."""
        for letter, parameter in self.factors().items():
            if parameter.grad is None:
                continue
            mean, stray = getattr(self, f"sensitivity_{letter}"), getattr(self, f"uncertainty_{letter}")
            now = (parameter * parameter.grad).abs()
            sound = now.isfinite().all()
            mean.copy_(torch.where(sound, mean.lerp(now, 1 - self.config.beta1), mean))
            stray.copy_(torch.where(sound, stray.lerp((now - mean).abs(), 1 - self.config.beta2), stray))

    def scores(self) -> Tensor:
        """Return equation (4), (r,)."""
        s = {
            letter: getattr(self, f"sensitivity_{letter}") * getattr(self, f"uncertainty_{letter}") for letter in "AEB"
        }
        return s["E"][:, 0] + s["A"].mean(dim=1) + s["B"].mean(dim=0)


def parts(backbone: Transformer, config: AdaLoRAConfig, name: str) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places."""
    return {
        path: AdaLoRA(layer, config, make_dropout(backbone, config.dropout, f"{name}.{path}"))
        for path, layer in target_places(backbone, config.targets).items()
    }


def updates(model: nn.Module, name: str) -> list[AdaLoRA]:
    """Return the parts of an attached AdaLoRA adapter, in the order of the model.

    Raises:
        ValueError: no adapter of that name and kind is attached.
    """
    found = [part for part in parts_of(model, name).values() if isinstance(part, AdaLoRA)]
    if not found:
        raise ValueError(f"no AdaLoRA adapter is attached under the name {name!r}; attach one first")
    return found


class WithOrthogonality:
    """An objective whose loss in training mode has the penalty (2) as its `extra`; evaluation sees none of it.

    It goes around all else that wraps an objective: where that steps twice, the penalty still counts once.
    """

    def __init__(self, objective: Objective, name: str) -> None:
        self.objective, self.name = objective, name

    def prepare(self, batch: Batch) -> Batch:
        """Return what the objective itself prepares."""
        return self.objective.prepare(batch)

    def step(self, model: Any, batch: Batch) -> Loss:
        """Return the objective's loss, in training mode with the penalty."""
        loss = self.objective.step(model, batch)
        if not model.training:
            return loss
        penalty = orthogonality(model, self.name)
        return dataclasses.replace(loss, extra=penalty if loss.extra is None else loss.extra + penalty)


def orthogonality(model: nn.Module, name: str) -> Tensor:
    """Return the penalty (2) of an attached adapter, () float32, with gradient."""
    parts = updates(model, name)
    total = torch.stack([part.distance_from_orthonormal() for part in parts]).sum()
    return parts[0].config.orthogonality * total / (2 * len(parts))


class RankAllocator:
    """Shares out the rank of an attached adapter while a trainer trains it.

    steps: T, optimiser steps of the whole run.
    first, last: t_i and t_f, the steps between which the budget falls.
    values: of each update what becomes 0 where a triplet is pruned, (r, 1): E and, if the trainer keeps one, its mean.
    """

    def __init__(self, model: nn.Module, name: str, *, steps: int) -> None:
        self.updates = updates(model, name)
        self.values: list[list[Tensor]] = [[part.E] for part in self.updates]
        config = self.updates[0].config
        self.config, self.steps = config, steps
        self.first = round(config.initial_fraction * steps)
        self.last = max(self.first, steps - round(config.final_fraction * steps))

    def connect(self, trainer: Trainer) -> None:
        """Let a trainer step this allocator from now on."""
        if trainer.ema is not None:
            means = trainer.ema.tensors()
            names = {parameter: name for name, parameter in trainer.model.named_parameters()}
            for part, values in zip(self.updates, self.values, strict=True):
                values.append(means[names[part.E]])
        trainer.after_backward.append(lambda trainer: self.observe(trainer.state.step + 1))
        trainer.after_step.append(lambda trainer: self.prune(trainer.state.step))

    def observe(self, step: int) -> None:
        """Renew the scores from the gradients of a step, counted from 1."""
        if step <= self.last:
            for part in self.updates:
                part.observe()

    @torch.no_grad()
    def prune(self, step: int) -> None:
        """Set E, and its mean, to 0 of the triplets that the budget after a step, counted from 1, has no room for."""
        if step <= self.first or (step <= self.last and step % self.config.prune_every):
            return
        scores = torch.cat([part.scores() for part in self.updates])  # (n * r,)
        excess = len(scores) - self.budget(step)
        doomed = torch.zeros_like(scores, dtype=torch.bool)
        doomed[scores.argsort(stable=True)[:excess]] = True
        for values, mine in zip(self.values, doomed.split(self.config.rank), strict=True):
            for value in values:
                value.masked_fill_(mine[:, None], 0.0)

    def budget(self, step: int) -> int:
        """Return b(t), the number of triplets that are kept after a step, by equation (5)."""
        start, end = (len(self.updates) * rank for rank in (self.config.rank, self.config.target_rank))
        if step <= self.first:
            return start
        if step > self.last:
            return end
        left = 1 - (step - self.first) / (self.last - self.first)
        return int(end + (start - end) * left**3)
