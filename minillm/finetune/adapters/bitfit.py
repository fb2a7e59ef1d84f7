r"""BitFit: the biases alone learn, those of the linear layers and of the norms.

    y = base(x) + d,     d (out,), at a linear layer;     bias + d at a norm

What is learnt is the distance d from the model's own bias, which moves as the bias itself would: neither decays. It
begins at 0, so at the start y is what it was, and to take the adapter off is to leave d out. The biases of embeddings'
norm, blocks and final norm take part; those of a language model's head and of a pooler do not.

Trainable: as many numbers as there are biases.

Source: Ben Zaken et al. (2021), arXiv:2106.10199.

Read next: `attach.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.finetune.adapters.bottleneck import stream_norms
from minillm.finetune.adapters.config import BitFitConfig
from minillm.finetune.adapters.places import Mergeable, Part, target_places
from minillm.model.transformer import Transformer


class BiasShift(Mergeable):
    """What is added to one bias."""

    def __init__(self, width: int, config: BitFitConfig) -> None:
        super().__init__(config)
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        y = inner(x)
        return (y + self.shift).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W, and b + d."""
        return weight, None if bias is None else bias + self.shift.to(weight.dtype)


def parts(backbone: Transformer, config: BitFitConfig) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places.

    Raises:
        InputError: the model has no bias.
    """
    layers = target_places(backbone, ("all",)) | stream_norms(backbone)
    biases = {path: layer.bias for path, layer in layers.items() if layer.bias is not None}
    if not biases:
        raise InputError("adapter.kind is bitfit, and this model has no bias to learn (model.bias); take another kind")
    return {path: BiasShift(len(bias), config) for path, bias in biases.items()}
