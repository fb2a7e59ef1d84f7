"""The `torch` backend of rms_norm.

Read next: `../layer_norm/__init__.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    wide = s.to(working_dtype(s.dtype))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), s
