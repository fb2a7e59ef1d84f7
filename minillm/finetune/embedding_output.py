"""The place between embeddings and blocks: what stands there can be looked at, shifted and replaced from outside.

    tokens -> backbone.embeddings -> e (B, T, C) float32 -> change(e) -> blocks -> ...

It is a forward hook, so the model has no flag for it, and it serves every backbone, with frozen embeddings, adapters,
any compute dtype and any backend of the ops. Adversarial training and integrated gradients stand on it.

Read next: `regularisers/adversarial.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from minillm.model.transformer import Transformer


@contextmanager
def changed_embeddings(backbone: Transformer, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give the blocks `change(e)` in place of the embedding output e, in every pass inside the block.

    Args:
        change: (B, T, C) float32 -> the same shape. e has passed the embedding's norm and dropout, where there are any.
    Raises:
        ValueError: no pass inside the block came by: a compiled model has its old code, without the hook, in memory.
    """
    passes = 0

    def hook(module: object, inputs: object, output: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return change(output)

    handle = backbone.embeddings.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not passes:
        raise ValueError(
            "the embedding output was not met: a compiled model does not see what is put there; set train.compile=false"
        )
