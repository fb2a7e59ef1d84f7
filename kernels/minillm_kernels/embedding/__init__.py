"""embedding: the row of a table for each token.

Read next: `reference.py` for the maths, then `../attention/__init__.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.embedding import composed, reference

__all__ = ["embedding"]


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Look up one row of `weight` for each token.

        y[..., c] = weight[tokens[...], c]

    Args:
        tokens: (...), int64 or int32, each in [0, V).
        weight: table (V, C), any floating dtype.
    Returns:
        (..., C) in the dtype of `weight`. The gradient of a row is the sum over the places where its token stands.
    Raises:
        ValueError: `weight` is not (V, C), or is on another device.
        TypeError: tokens that are not int64 or int32, a table that is not floating.
        IndexError: on a CPU, a token outside [0, V); a GPU stops with a device-side assertion.

    Cost: reads and writes tokens.numel() * C elements; bound by memory.

    >>> import torch
    >>> embedding(torch.tensor([[2, 0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    tensor([[[4., 5.],
             [0., 1.]]])
    """
    checks.floating("weight", weight)
    checks.rank("weight", weight, "V C")
    checks.a_tensor("tokens", tokens)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"tokens must be int64 or int32, got {tokens.dtype}; convert it first")
    checks.same_device("weight", weight, tokens=tokens)
    checks.indices("tokens", tokens, weight.shape[0], "the rows of the table", IndexError)
    match dispatch.choose("embedding", weight):
        case "fused":
            from minillm_kernels.embedding import fused

            return fused.embedding(tokens, weight)
        case "reference":
            return reference.embedding(tokens, weight)
        case _:
            return composed.embedding(tokens, weight)
