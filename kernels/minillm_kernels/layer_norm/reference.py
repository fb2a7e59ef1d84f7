r"""layer_norm by hand, forward and backward.

With C columns, weight w, upstream gradients dy and ds (of the returned sum), keep = 0 or 1 per element:

    s = keep * x / (1 - p) + residual                            (1)
    centred_c = s_c - mean_k(s_k)                                (2)
    rstd = (mean_c(centred_c^2) + eps)^(-1/2)                    (3)
    x_hat = centred * rstd,   y = x_hat * w + bias               (4)

Backward. Let g = dy * w, the gradient of x_hat. As sum_c(centred_c) = 0, the mean in (2) adds nothing to
d rstd / d s_c = -rstd^3 * centred_c / C                         (5)
By the product rule on (4), with (5), the gradient of s_c through x_hat, before the shift of (2):

    h_c = rstd * (g_c - x_hat_c * mean_k(g_k * x_hat_k))         (6)  as in rms_norm
    through y: h_c - mean_k(h_k), where the x_hat term of (6) has mean 0, so
             = rstd * (g_c - mean_k(g_k) - x_hat_c * mean_k(g_k * x_hat_k))                       (7)
    total = (7) + ds                                             (8)  s is an output of its own
    dx = keep * total / (1 - p),   dresidual = total             (9)  from (1)
    dw = sum over rows of dy * x_hat,   dbias = sum over rows of dy                               (10) from (4)

The variance is the mean of centred squares, not mean(s^2) - mean(s)^2: that loses all digits when |mean| is large.

Read next: `composed.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm_kernels.by_hand import by_hand, own_result
from minillm_kernels.dropout.reference import drop, dropout_factor
from minillm_kernels.precision import working_dtype


def layer_norm_forward(s: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (..., C), x_hat (..., C) and rstd (..., 1) of the rows of s; all in one working dtype."""
    centred = s - s.mean(-1, keepdim=True)  # (2), (..., C)
    rstd = (centred.square().mean(-1, keepdim=True) + eps) ** -0.5  # (3), (..., 1)
    x_hat = centred * rstd  # (4)
    y = x_hat * weight
    return (y if bias is None else y + bias), x_hat, rstd


def layer_norm_backward(dy: Tensor, x_hat: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of s through y, of weight and of bias; all in one working dtype."""
    g = dy * weight  # (..., C)
    through_y = rstd * (g - g.mean(-1, keepdim=True) - x_hat * (g * x_hat).mean(-1, keepdim=True))  # (7)
    R, C = rstd.numel(), weight.shape[0]
    return through_y, (dy * x_hat).reshape(R, C).sum(0), dy.reshape(R, C).sum(0)  # (10)


class LayerNorm(torch.autograd.Function):
    """Equations (1) to (10), in float32 for low dtypes and in float64 for float64."""

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
        y, x_hat, rstd = layer_norm_forward(s.to(wide), weight.to(wide), None if bias is None else bias.to(wide), eps)
        ctx.save_for_backward(x_hat, weight, bias, rstd, keep)
        ctx.dtype = x.dtype
        ctx.has_residual = residual is not None
        return y.to(x.dtype), s.clone() if s is x else s

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, ds = grads
        x_hat, weight, bias, rstd, keep = ctx.saved_tensors
        wide = rstd.dtype
        through_y, dweight, dbias = layer_norm_backward(dy.to(wide), x_hat, weight.to(wide), rstd)
        total = through_y + ds.to(wide)  # (8)
        dx = drop(total, keep)  # (9)
        return (
            dx.to(ctx.dtype),
            dweight.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            total.to(ctx.dtype) if ctx.has_residual else None,
            None,
            None,
            None,
        )


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dropout_p: float,
    seed: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return y and the sum s that was normed; arguments as in the public function."""
    y, s = LayerNorm.apply(x, weight, bias, residual, eps, dropout_p, seed)
    return y, s
