r"""LoRA: a weight W stays, and a product of two thin matrices learns what is added to it.

    y = W x + b + s B A dropout(x),     A (r, in),  B (out, r),     s = alpha / r,  or alpha / sqrt(r) (rsLoRA)

A is drawn from U(-1/sqrt(in), 1/sqrt(in)) and B is 0, so at the start y is what it was. The square root keeps the
update from shrinking as the rank grows. A table of vectors is adapted alike: there A is looked up by number, and is the
one that is 0; B is drawn from N(0, 1), and nothing is dropped.

Trainable: r (in + out) for each target.

Source: Hu et al. (2021), arXiv:2106.09685; A is drawn as in the authors' code and in PEFT, not as in the paper.
rsLoRA: Kalajdzievski (2023), arXiv:2312.03732.

Read next: `dora.py`, `adalora.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from minillm.finetune.adapters.config import LoRAConfig
from minillm.finetune.adapters.dropout import AdapterDropout, pass_seed
from minillm.finetune.adapters.places import Mergeable, Part, target_places
from minillm.model.layers import Embedding, Linear
from minillm.model.transformer import Transformer


def scale_of(config: LoRAConfig) -> float:
    """Return s, by which the product is scaled.

    >>> scale_of(LoRAConfig(rank=16, alpha=8)), scale_of(LoRAConfig(rank=16, alpha=8, rank_stabilised=True))
    (0.5, 2.0)
    """
    return config.alpha / (math.sqrt(config.rank) if config.rank_stabilised else config.rank)


class LoRA(Mergeable):
    """The update of one linear layer."""

    def __init__(self, base: Linear, config: LoRAConfig, dropout: AdapterDropout | None) -> None:
        super().__init__(config)
        self.scale, self.dropout = scale_of(config), dropout
        self.A = Linear(base.in_features, config.rank, bias=False)
        self.B = Linear(config.rank, base.out_features, bias=False)
        bound = base.in_features**-0.5
        nn.init.uniform_(self.A.weight, -bound, bound)
        nn.init.zeros_(self.B.weight)

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        return inner(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """Return s B A dropout(x), (..., out)."""
        x = x if self.dropout is None else self.dropout(x)
        return self.scale * self.B(self.A(x))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W + s B A, and b."""
        return weight + self.product(weight), bias

    def product(self, weight: Tensor) -> Tensor:
        """Return s B A (out, in), in the dtype of the weight that it is added to."""
        return self.scale * (self.B.weight.to(weight.dtype) @ self.A.weight.to(weight.dtype))


class LoRATable(Mergeable):
    """The update of a table of vectors: row n of the table gains s B A[n]."""

    def __init__(self, base: Embedding, config: LoRAConfig) -> None:
        super().__init__(config)
        rows, width = base.weight.shape
        self.scale = scale_of(config)
        self.A = Embedding(rows, config.rank)
        self.B = Linear(config.rank, width, bias=False)
        nn.init.zeros_(self.A.weight)
        nn.init.normal_(self.B.weight)

    def forward(self, inner: Callable[[Tensor], Tensor], numbers: Tensor) -> Tensor:
        """Return (..., C) for numbers (...) int64."""
        return inner(numbers) + self.scale * self.B(self.A(numbers))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the table (V, C) with its update; bias is None."""
        return weight + self.scale * (self.A.weight.to(weight.dtype) @ self.B.weight.to(weight.dtype).T), bias


def parts(backbone: Transformer, config: LoRAConfig, name: str) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places."""
    targets = target_places(backbone, config.targets, (Linear, Embedding))
    return {
        path: LoRATable(layer, config)
        if isinstance(layer, Embedding)
        else LoRA(layer, config, make_dropout(backbone, config.dropout, f"{name}.{path}"))
        for path, layer in targets.items()
    }


def make_dropout(backbone: Transformer, p: float, site: str) -> AdapterDropout | None:
    """Return the dropout of an adapter at one place, or None where nothing is dropped."""
    return AdapterDropout(p, pass_seed(backbone), site) if p else None
