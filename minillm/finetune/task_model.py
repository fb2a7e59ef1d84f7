"""A backbone and a head as one model: tokens in, what the task asks for out.

    tokens (B, T) -> backbone -> hidden (B, T, C) -> head -> logits (B, K)        parameters backbone.* and head.*

An adapter is put into `backbone` from outside (`adapters/`); nothing here knows of it.

Read next: `tasks/base.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.finetune.config import TaskModelConfig
from minillm.finetune.heads import TextHead
from minillm.model.transformer import Transformer

ADAPTER = "adapter"  # the name of a run's own adapter


class TaskModel(nn.Module):
    """What the trainer trains and a checkpoint holds.

    config: what goes into the checkpoint; with a vocabulary, label names and the text's policy it makes an equal model.
    """

    def __init__(self, config: TaskModelConfig, backbone: Transformer, head: nn.Module) -> None:
        """Put the two together; `config.backbone` is the backbone's own configuration."""
        super().__init__()
        self.config, self.backbone, self.head = config, backbone, head

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute the backbone's activations in `dtype` from now on; parameters stay as they are."""
        self.backbone.compute_in(dtype)

    def recompute_blocks(self) -> None:
        """Let the backward pass compute each block of the backbone anew; see `Transformer.recompute_blocks`."""
        self.backbone.recompute_blocks()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the backbone."""
        return self.backbone.blocks

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self,
        tokens: Tensor,
        *,
        starts: Tensor | None = None,
        lengths: Tensor | None = None,
        seed: int | Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Return what the head makes of the hidden states of tokens (B, T); arguments as in `Transformer.forward`.

        Raises:
            ValueError: several texts in a row (`segments`) for a head that makes one vector of a row.
        """
        if inputs.get("segments") is not None and isinstance(self.head, TextHead):
            raise ValueError(
                "segments pack several texts into a row, and this head gives one answer a row; give it a text a row "
                "with lengths, or run model.backbone packed and model.head on the hidden states of each text"
            )
        if seed is not None:
            seed = torch.as_tensor(seed, dtype=torch.int64, device=tokens.device)
        elif self.training:
            seed = torch.randint(2**62, (), device=tokens.device)
        hidden = self.backbone(tokens, starts=starts, lengths=lengths, seed=seed, **inputs)  # (B, T, C)
        return self.head(hidden, starts=starts, lengths=lengths, seed=seed if self.training else None)
