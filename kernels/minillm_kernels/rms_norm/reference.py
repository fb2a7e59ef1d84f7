r"""rms_norm by hand, forward and backward.

With C columns, weight w, upstream gradients dy and ds (of the returned sum), keep = 0 or 1 per element:

    s = keep * x / (1 - p) + residual                            (1)
    rstd = (mean_c(s_c^2) + eps)^(-1/2)                          (2)
    x_hat = s * rstd,   y = x_hat * w + bias                     (3)

Backward. Let g = dy * w, the gradient of x_hat. From (2), d rstd / d s_c = -rstd^3 * s_c / C     (4)
By the product rule on (3), with (4):

    gradient of s_c through y = rstd * g_c + sum_k(g_k * s_k) * (-rstd^3 * s_c / C)
                              = rstd * (g_c - x_hat_c * mean_k(g_k * x_hat_k))                    (5)
    total = (5) + ds                                             (6)  s is an output of its own
    dx = keep * total / (1 - p),   dresidual = total             (7)  from (1)
    dw = sum over rows of dy * x_hat,   dbias = sum over rows of dy                               (8)  from (3)

Read next: `../precision.py` and `../by_hand.py` for the three names from there; `composed.py`; then
`../layer_norm/reference.py`, which adds the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype


def rms_norm_forward(s: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return y (..., C) and rstd (..., 1) of the rows of s; all in one working dtype."""
    rstd = (s.square().mean(-1, keepdim=True) + eps) ** -0.5  # (2), (..., 1)
    y = s * rstd * weight  # (3), (..., C)
    return (y if bias is None else y + bias), rstd


def rms_norm_backward(dy: Tensor, s: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of s through y, of weight and of bias; all in one working dtype."""
    x_hat = s * rstd  # (..., C)
    g = dy * weight
    through_y = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))  # (5)
    R, C = rstd.numel(), weight.shape[0]
    return through_y, (dy * x_hat).reshape(R, C).sum(0), dy.reshape(R, C).sum(0)  # (8)


class RmsNorm(torch.autograd.Function):
    """Equations (1) to (8), in float32 for low dtypes and in float64 for float64."""

    @staticmethod
    @own_result
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        dropout_p: float,
        seed: int | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        wide = working_dtype(x.dtype)
        keep = dropout_factor(x, dropout_p, seed)
        s = drop(x.to(wide), keep)
        if residual is not None:
            s = s + residual.to(wide)  # (1)
        s = s.to(x.dtype)  # y is the norm of the s that is returned
        y, rstd = rms_norm_forward(s.to(wide), weight.to(wide), None if bias is None else bias.to(wide), eps)
        ctx.save_for_backward(s, weight, bias, rstd, keep)
        ctx.has_residual = residual is not None
        return y.to(x.dtype), s.clone() if s is x else s

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, ds = grads
        s, weight, bias, rstd, keep = ctx.saved_tensors
        wide = rstd.dtype
        through_y, dweight, dbias = rms_norm_backward(dy.to(wide), s.to(wide), weight.to(wide), rstd)
        total = through_y + ds.to(wide)  # (6)
        dx = drop(total, keep)  # (7)
        return (
            dx.to(s.dtype),
            dweight.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            total.to(s.dtype) if ctx.has_residual else None,
            None,
            None,
            None,
        )


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
    y, s = RmsNorm.apply(x, weight, bias, residual, eps, dropout_p, seed)
    return y, s
