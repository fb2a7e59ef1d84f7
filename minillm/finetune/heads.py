r"""From hidden states to what a task asks for. All of it belongs to the head: an adapter run trains and saves it whole.

A head for texts takes one vector a text, out of the hidden states h (B, T, C) of its real tokens start .. stop - 1:

    cls      h[start]                           an encoder's cls symbol
    mean     sum of h[t] / (stop - start)       over real tokens
    last     h[stop - 1]                        a decoder's last real token: the only one that has seen all others
    pooler   tanh(dense(h[start]))              BERT's

`auto` is mean for an encoder and last for a decoder. Padding is in none of them, on whichever side it stands.

Between that vector, or each token's, and the last linear layer may stand one more: the layers that DistilBERT and
ModernBERT have there, so that their heads can be had, and a head of ours can become one of theirs.

Read next: `task_model.py`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from minillm_kernels import dropout
from torch import Tensor, nn

from minillm.finetune.config import HeadConfig, Pooling
from minillm.model.config import ModelConfig
from minillm.model.heads import HeadTransform, Pooler
from minillm.model.init import initialise
from minillm.model.layers import Linear, Pass, activate_after, mlp_output_site


class Head(Protocol):
    """Hidden states (B, T, C) -> what a task asks for; `seed` is () int64 of the dropout, None: nothing is dropped."""

    def __call__(
        self, hidden: Tensor, *, starts: Tensor | None, lengths: Tensor | None, seed: Tensor | None
    ) -> Tensor: ...


def resolved(pooling: Pooling, backbone: ModelConfig) -> Pooling:
    """Return what `auto` stands for with a backbone, and every other choice as it is.

    Raises:
        ValueError: a decoder's first token, which has seen nothing but itself.
    """
    if backbone.kind == "decoder" and pooling in ("cls", "pooler"):
        raise ValueError(
            f"head.pooling is {pooling}, and the first token of a decoder has seen no other; take last or mean"
        )
    if pooling != "auto":
        return pooling
    return "last" if backbone.kind == "decoder" else "mean"


def pool(hidden: Tensor, how: Pooling, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return one vector a text, (B, C) float32 or wider, by the table at the head of this file; a pooler comes after.

    Args:
        hidden: (B, T, C).
        how: cls, mean, last, or pooler, which is cls here.
        starts: (B,) int64, first real token; None: 0.
        lengths: (B,) int64, number of real tokens, 1 at least; None: to the end of the row.
    """
    B, T, _ = hidden.shape
    first = torch.zeros(B, dtype=torch.int64, device=hidden.device) if starts is None else starts  # (B,)
    stop = torch.full_like(first, T) if lengths is None else first + lengths  # (B,)
    if how == "mean":
        columns = torch.arange(T, device=hidden.device)  # (T,)
        real = (columns >= first[:, None]) & (columns < stop[:, None])  # (B, T)
        total = widened(hidden).masked_fill(~real[:, :, None], 0.0).sum(dim=1)  # (B, C); NaN in padding stays out
        return total / (stop - first)[:, None]
    place = stop - 1 if how == "last" else first
    return widened(hidden[torch.arange(B, device=hidden.device), place])


class ReLULayer(nn.Module):
    """y = ReLU(dense(x)): DistilBERT's, before its classifier."""

    def __init__(self, backbone: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(backbone.width, backbone.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) for x (..., C)."""
        return activate_after(self.dense, "relu", x)


def make_layer(config: HeadConfig, backbone: ModelConfig) -> nn.Module | None:
    """Return what stands before the last linear layer, None for nothing."""
    match config.layer:
        case "relu":
            return ReLULayer(backbone)
        case "transform":
            return HeadTransform(backbone)
    return None


class TextHead(nn.Module):
    """y = dense(dropout(layer(vector of the text))): K numbers a text.

    pooler: None but for pooling "pooler". layer: None where there is none.
    """

    def __init__(self, config: HeadConfig, backbone: ModelConfig, outputs: int) -> None:
        """Draw the weights by the table of `minillm/model/init.py`, from PyTorch's default generator.

        Args:
            outputs: K, the number of labels, or 1 for a number.
        Raises:
            ValueError: a pooling that does not fit the backbone.
        """
        super().__init__()
        self.pooling: Pooling = resolved(config.pooling, backbone)
        self.pooler = Pooler(backbone) if self.pooling == "pooler" else None
        self.layer = make_layer(config, backbone)
        bias = backbone.kind == "encoder" if config.bias is None else config.bias
        self.dense = Linear(backbone.width, outputs, bias=bias)
        self.dropout_p, self.site = config.dropout, head_site(backbone)
        initialise(self, backbone)

    def forward(
        self, hidden: Tensor, *, starts: Tensor | None, lengths: Tensor | None, seed: Tensor | None = None
    ) -> Tensor:
        """Return (B, K) float32 for hidden states (B, T, C)."""
        x = pool(hidden, self.pooling, starts, lengths)  # (B, C)
        if self.pooler is not None:
            x = self.pooler(x)
        if self.layer is not None:
            x = self.layer(x)
        return self.dense(dropped(x, self.dropout_p, self.site, seed))


class TokenHead(nn.Module):
    """y = dense(dropout(layer(h))): K numbers a token."""

    def __init__(self, config: HeadConfig, backbone: ModelConfig, outputs: int) -> None:
        """Draw the weights by the table of `minillm/model/init.py`, from PyTorch's default generator."""
        super().__init__()
        self.layer = make_layer(config, backbone)
        self.dense = Linear(backbone.width, outputs, bias=config.bias is not False)
        self.dropout_p, self.site = config.dropout, head_site(backbone)
        initialise(self, backbone)

    def forward(
        self, hidden: Tensor, *, starts: Tensor | None, lengths: Tensor | None, seed: Tensor | None = None
    ) -> Tensor:
        """Return (B, T, K) float32 for hidden states (B, T, C); what comes out at padding means nothing."""
        x = hidden if self.layer is None else self.layer(hidden)
        return widened(self.dense(dropped(x, self.dropout_p, self.site, seed)))


class HiddenStates(nn.Module):
    """No head: hidden states as they are, for a task that takes the backbone's own output weight."""

    def forward(
        self, hidden: Tensor, *, starts: Tensor | None, lengths: Tensor | None, seed: Tensor | None = None
    ) -> Tensor:
        """Return `hidden`, (B, T, C)."""
        return hidden


def widened(x: Tensor) -> Tensor:
    """Return x in float32, or as it is where it is wider: statistics, logits and losses are taken so.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def head_site(backbone: ModelConfig) -> int:
    """Return the number of the place where a head drops: the one after the backbone's last; see layers.Pass.dropout."""
    return mlp_output_site(backbone.num_layers - 1) + 1


def dropped(x: Tensor, p: float, site: int, seed: Tensor | None) -> Tensor:
    """Return dropout(x) at a place in the model; x itself without a seed."""
    p, seed = Pass(seed=seed).dropout(p, site)
    return x if seed is None else dropout(x, p, seed)
