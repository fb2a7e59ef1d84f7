r"""DoRA: LoRA moves the direction of each row of a weight, and a gain of its own the row's length.

    V = W + s B A                                   (out, in), the update of LoRA
    y = g * (V x) + b,     g_o = m_o / |V_o|        m (out,) is learnt; |V_o| is the Euclidean length of row o

m begins as the lengths of the rows of W, so at the start y is what it was. |V_o| counts as a constant in the backward
pass, as the paper proposes: it saves memory and costs no accuracy. Dropout acts on what enters B A alone. So that the
start is exact in every dtype, what is computed is

    y = y' + (g - 1) (y' - b) + g s B A dropout(x),     y' = W x + b

Trainable: r (in + out) + out for each target. A weight has one length for each row, so at a place with a DoRA nothing
else can be active.

Source: Liu et al. (2024), arXiv:2402.09353, equations 5 and 11.

Read next: `adalora.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minillm.finetune.adapters.config import LoRAConfig
from minillm.finetune.adapters.dropout import AdapterDropout
from minillm.finetune.adapters.lora import LoRA, make_dropout
from minillm.finetune.adapters.places import Part, target_places
from minillm.model.layers import Linear
from minillm.model.transformer import Transformer

SHORTEST = 1e-12


class DoRA(LoRA):
    """Direction and length of the rows of one linear layer's weight.

    magnitude: m, (out,) float32.
    """

    alone = True

    def __init__(self, base: Linear, config: LoRAConfig, dropout: AdapterDropout | None) -> None:
        super().__init__(base, config, dropout)
        self.magnitude = nn.Parameter(row_lengths(base.weight.detach()))

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        base: Any = inner  # nothing else is active here, so it is the linear layer itself
        with torch.no_grad():
            lengths = row_lengths(base.weight + self.product(base.weight))  # (out,)
        gain = self.magnitude / lengths
        y = inner(x)  # (..., out)
        without_bias = y if base.bias is None else y - base.bias.to(y.dtype)
        return y + (gain - 1).to(y.dtype) * without_bias + gain.to(y.dtype) * self.update(x)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return g V, and b."""
        moved = weight + self.product(weight)
        return (self.magnitude.to(weight.dtype) / row_lengths(moved))[:, None] * moved, bias


def row_lengths(weight: Tensor) -> Tensor:
    """Return the Euclidean length of each row, (out,) for (out, in); a row of zeros has one that can be divided by."""
    return torch.linalg.vector_norm(weight, dim=1).clamp(min=SHORTEST)


def parts(backbone: Transformer, config: LoRAConfig, name: str) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places."""
    return {
        path: DoRA(layer, config, make_dropout(backbone, config.dropout, f"{name}.{path}"))
        for path, layer in target_places(backbone, config.targets).items()
    }
