"""What stands on the hidden states: the language model's head, and BERT's pooler.

Heads of fine-tuning tasks are not here: they belong to their tasks.

Read next: `init.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.model.config import GATED, ModelConfig
from minillm.model.layers import Linear, activate_after, make_norm


class HeadTransform(nn.Module):
    """y = norm(f(dense(x))): BERT's layer before the output weight; f is GELU where the model's own is gated."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = "gelu" if config.activation in GATED else config.activation
        self.dense = Linear(config.width, config.width, bias=config.bias)
        self.norm = make_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) for x (..., C)."""
        return self.norm(activate_after(self.dense, self.activation, x))


class LanguageModelHead(nn.Module):
    """All that belongs to the head alone: an output weight that is tied to the embedding is not here.

    weight: (V, C), or None where it is tied. bias: (V,), or None for none.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config) if config.head == "transform" else None
        V, C = config.vocab_size, config.width
        self.weight = None if config.tied_embeddings else nn.Parameter(torch.empty(V, C))
        self.bias = nn.Parameter(torch.empty(V)) if config.head_bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what is multiplied by the output weight, (..., C) for hidden (..., C)."""
        return hidden if self.transform is None else self.transform(hidden)


class Pooler(nn.Module):
    """y = tanh(dense(hidden state of the first token)): BERT's summary of a text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width, bias=True)

    def forward(self, first: Tensor) -> Tensor:
        """Return (B, C) for the first tokens' hidden states (B, C)."""
        return torch.tanh(self.dense(first))
