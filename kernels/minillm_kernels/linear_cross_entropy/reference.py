r"""linear_cross_entropy by hand, forward and backward, with all the logits at once.

    logits = hidden @ weight^T + bias            (1)
    loss = cross_entropy(logits, targets)        (2)  `../cross_entropy/reference.py`

Backward. Let dlogits be the gradient of (2), with rows of zeros at ignored targets; (1) is linear in each factor:

    dhidden = dlogits @ weight                   (3)
    dweight = dlogits^T @ hidden                 (4)
    dbias = sum over rows of dlogits             (5)

Each row of dlogits needs only its own row of logits, and (4) and (5) are sums over rows: so chunks of rows can be done
one after the other, and no more than one chunk's logits need exist. That is `chunks.py`.

Read next: `chunks.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.cross_entropy.reference import Options, cross_entropy_backward, cross_entropy_forward
from minillm_kernels.precision import working_dtype


class LinearCrossEntropy(torch.autograd.Function):
    """Equations (1) to (5), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options
    ) -> Tensor:
        wide = working_dtype(hidden.dtype)
        logits = hidden.to(wide) @ weight.to(wide).T  # (1), (N, V)
        if bias is not None:
            logits = logits + bias.to(wide)
        losses, lse = cross_entropy_forward(logits, targets, options)  # (2), (N,)
        ctx.save_for_backward(hidden, weight, bias, targets, logits, lse)
        ctx.options = options
        return losses

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logits, lse = ctx.saved_tensors
        dlogits = cross_entropy_backward(grads[0], logits, targets, lse, ctx.options)  # (N, V)
        dhidden = (dlogits @ weight.to(logits.dtype)).to(hidden.dtype)  # (3)
        dweight = (dlogits.T @ hidden.to(logits.dtype)).to(weight.dtype)  # (4)
        dbias = None if bias is None else dlogits.sum(0).to(bias.dtype)  # (5)
        return dhidden, dweight, dbias, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options
) -> Tensor:
    """Return the losses (N,) of hidden (N, C), 0 where ignored."""
    return LinearCrossEntropy.apply(hidden, weight, bias, targets, options)
