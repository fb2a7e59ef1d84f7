r"""A running mean of the weights, which generalises better than the weights that it is the mean of.

    mean_0 = w_0,     mean_t = d_t mean_{t-1} + (1 - d_t) w_t,     d_t = min(decay, (1 + t) / (10 + t))

t counts optimiser steps. Without the second term the initial weights would have a share of decay^t in the mean, a third
of it after 1 / (1 - decay) steps. With it the share falls as (t + 1)! 10! / (t + 10)!, and a mean of weights that move
steadily is behind them by about t / 10 steps, until that reaches the decay's own decay / (1 - decay).

The optimiser goes on stepping the weights themselves. The mean stands in for them where the model is judged and saved.

Source: Polyak and Juditsky (1992); the warm-up is that of TensorFlow's tf.train.ExponentialMovingAverage.

Read next: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from minillm.checkpoint.native import put_by_name


class EMA:
    """The running mean of a model's trainable weights, in float32 whatever their dtype.

    decay: as in the formula above. Frozen weights and buffers are no part of it: they are what they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: on its final device.
            decay: in (0, 1), such as 0.999.

        Cost: 4 bytes per trainable parameter.
        """
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._means = {name: p.detach().to(torch.float32, copy=True) for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after an optimiser step into the mean.

        Args:
            step: how many steps that makes, 1 after the first one.

        Cost: reads weights and means and writes means once; bound by memory.
        """
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        weights = [weight.float() for weight in self._weights.values()]
        torch._foreach_lerp_(list(self._means.values()), weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the means as its weights inside the block; the weights come back bit for bit.

        Cost: a copy of the trainable weights while the block lasts.
        """
        kept = [weight.detach().clone() for weight in self._weights.values()]
        self._copy(self._means.values())
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: Iterable[Tensor]) -> None:
        """Give the model's weights other values, in place."""
        for weight, value in zip(self._weights.values(), values, strict=True):
            weight.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Return the means by parameter name: the tensors themselves, float32."""
        return dict(self._means)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that they are the means of, by the same names: the model's own tensors."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    def put(self, tensors: Mapping[str, Tensor], *, source: Path | str) -> None:
        """Take over means that `tensors` gave.

        Args:
            tensors: by parameter name.
            source: where they came from, for the error's text.
        Raises:
            InputError: a name or shape that differs; the means are then unchanged.
        """
        put_by_name(self._means, tensors, source=source)
