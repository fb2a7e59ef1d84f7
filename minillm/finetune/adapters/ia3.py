r"""(IA)^3: the model stays, and gains learn which of its inner activations to amplify or inhibit.

    keys, values (targets)              y = l * (W x + b),      l (out,)
    inside of the feed-forward part     y = W (l * x) + b,      l (in,)       (input_targets: the layer `down`)

Every l begins at 1, so at the start y is what it was.

Trainable: out for each target, in for each input target. A gain has one axis, so it does not decay.

Source: Liu et al. (2022), arXiv:2205.05638, section 3.3.

Read next: `bitfit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.finetune.adapters.config import IA3Config
from minillm.finetune.adapters.places import Mergeable, Part, target_places
from minillm.model.transformer import Transformer


class OutputGain(Mergeable):
    """A gain on each output of a linear layer."""

    def __init__(self, width: int, config: IA3Config) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        y = inner(x)
        return (y * self.gain).to(y.dtype)  # multiplied in float32: bfloat16 knows no gain between 1 and 1.0078

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W with scaled rows, and the scaled b."""
        gain = self.gain.to(weight.dtype)
        return gain[:, None] * weight, None if bias is None else gain * bias


class InputGain(Mergeable):
    """A gain on each input of a linear layer."""

    def __init__(self, width: int, config: IA3Config) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return (..., out) for x (..., in)."""
        return inner((x * self.gain).to(x.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W with scaled columns, and b."""
        return weight * self.gain.to(weight.dtype), bias


def parts(backbone: Transformer, config: IA3Config) -> Mapping[str, Part]:
    """Return the parts of an adapter by the paths of their places.

    Raises:
        InputError: a layer is meant by both kinds of targets.
    """
    outputs = target_places(backbone, config.targets)
    inputs = target_places(backbone, config.input_targets, setting="input_targets")
    if both := [path for path in outputs if path in inputs]:
        raise InputError(f"adapter.targets and adapter.input_targets both mean {both[0]}; leave it out of one")
    return {path: OutputGain(layer.out_features, config) for path, layer in outputs.items()} | {
        path: InputGain(layer.in_features, config) for path, layer in inputs.items()
    }
