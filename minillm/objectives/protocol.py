"""What an objective needs of a model, whichever it is, and the loss that both language-model objectives share.

Read next: `causal_lm.py`.
"""

from __future__ import annotations

from typing import Any, Protocol

from minillm_kernels import linear_cross_entropy
from torch import Tensor

from minillm.data.batch import Batch, has_target
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


def prediction_loss(model: LanguageModel, hidden: Tensor, batch: Batch, config: ObjectiveConfig) -> Loss:
    """Return the summed cross-entropy of the batch's targets (B, T) under the model's logits for hidden (B, T, C).

    The logits exist a chunk at a time, and places without a target do not enter the head. A GPU is waited for once if
    nobody has counted the targets, else not at all.
    """
    assert batch.targets is not None
    hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()  # (N, C), (N,)
    there = has_target(targets)
    number = int(there.sum()) if batch.num_targets is None else batch.num_targets
    if number < len(targets):
        places = there.nonzero_static(size=number)[:, 0]
        hidden, targets = hidden.index_select(0, places), targets[places]
    total = linear_cross_entropy(
        model.head(hidden),
        model.output_weight,
        targets,
        bias=model.output_bias,
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        softcap=model.config.logit_softcap,
        reduction="sum",
        num_targets=number,
    )
    return Loss(total=total, count=has_target(targets).sum())
