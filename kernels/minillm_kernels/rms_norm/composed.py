"""The `torch` backend of rms_norm.

PyTorch has no kernel for it on a CPU: F.rms_norm there is six ops with a backward pass each. The closed form of
`reference.py` takes fewer passes over memory: on 2 cores of an AMD EPYC forward and backward of (4096, 384) took 25 ms
in float32 against 36, and of (768, 128) 0.25 against 0.38.

Read next: `../layer_norm/__init__.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout import dropout
from minillm_kernels.precision import working_dtype


def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dropout_p: float,
    seed: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return y and the sum s that was normed; arguments as in the public function."""
    s = dropout(x, dropout_p, seed) if dropout_p > 0 and seed is not None else x  # (..., C)
    if residual is not None:
        s = s + residual
    y = ClosedForm.apply(s, weight, eps)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), s


class ClosedForm(torch.autograd.Function):
    """y = s * rstd * weight with the backward pass of `reference.py`, equation for equation."""

    @staticmethod
    @own_result
    def forward(ctx: Any, s: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return y (..., C) in the working dtype of s."""
        norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=working_dtype(s.dtype))  # (..., 1)
        rstd = norm.square_().div_(s.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(s, weight, rstd)
        return (s * rstd).mul_(weight)

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return ds and dweight."""
        (dy,) = grads
        s, weight, rstd = ctx.saved_tensors
        x_hat = s * rstd  # (..., C)
        product = (dy * x_hat).reshape(rstd.numel(), s.shape[-1])  # (R, C)
        dweight = product.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean = (product @ weight.to(product.dtype)).div_(s.shape[-1]).view(rstd.shape)  # of g * x_hat, g = dy * weight
        ds = torch.addcmul(dy * weight, x_hat, mean, value=-1).mul_(rstd)
        return ds.to(s.dtype), dweight, None
