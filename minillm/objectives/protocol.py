"""What an objective needs of a model, whichever it is, and the loss that both language-model objectives share.

Read next: `causal_lm.py`.
"""

from __future__ import annotations

from typing import Any, Protocol

from minillm_kernels import linear_cross_entropy
from torch import Tensor

from minillm.data.batch import IGNORED, Batch
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.loss import Loss


class LanguageModel(Protocol):
    """Hidden states, and what turns them into logits; `minillm.model.transformer.Transformer` is one."""

    config: Any

    def __call__(self, tokens: Tensor, **inputs: Any) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...
    @property
    def output_weight(self) -> Tensor: ...
    @property
    def output_bias(self) -> Tensor | None: ...


class Objective(Protocol):
    """Something to be learnt, in two halves: what is drawn at random, and what has a gradient.

    prepare: a pure function of the batch and `batch.seed`. It sees the batch of a whole optimiser step on the CPU,
        before that is cut into micro-batches, so that the cut changes nothing of what is drawn.
    step: the loss of a model on a prepared (micro-)batch.
    """

    def prepare(self, batch: Batch) -> Batch: ...
    def step(self, model: LanguageModel, batch: Batch) -> Loss: ...


def prediction_loss(model: LanguageModel, hidden: Tensor, targets: Tensor, config: ObjectiveConfig) -> Loss:
    """Return the cross-entropy of the targets (N,) under the model's logits for hidden states (N, C), summed.

    The logits exist a chunk at a time; rows with target -100 are not multiplied at all.
    """
    total = linear_cross_entropy(
        model.head(hidden),
        model.output_weight,
        targets,
        bias=model.output_bias,
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        softcap=model.config.logit_softcap,
        reduction="sum",
    )
    return Loss(total=total, count=(targets != IGNORED).sum())
