r"""embedding by hand, forward and backward.

With onehot[n, v] = 1 where tokens[n] = v, the lookup is a matrix product in which all but one term of each sum is zero:

    y[n, c] = sum_v onehot[n, v] * weight[v, c] = weight[tokens[n], c]                   (1)
    dweight[v, c] = sum_n onehot[n, v] * dy[n, c]                                        (2)  from (1)
                  = sum over n with tokens[n] = v of dy[n, c]

Read next: `composed.py`, then `../attention/reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import own_result
from minillm_kernels.precision import working_dtype


class Embedding(torch.autograd.Function):
    """Equations (1) and (2); the sum of (2) in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.table = weight.shape, weight.dtype
        return weight[tokens]  # (1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        (tokens,) = ctx.saved_tensors
        (V, C), dtype = ctx.table
        dweight = dy.new_zeros(V, C, dtype=working_dtype(dtype))
        dweight.index_add_(0, tokens.reshape(-1), dy.reshape(tokens.numel(), C).to(dweight.dtype))  # (2)
        return None, dweight.to(dtype)


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return the rows; arguments as in the public function."""
    return Embedding.apply(tokens, weight)
