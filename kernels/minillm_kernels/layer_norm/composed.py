"""The `torch` backend of layer_norm.

Without the widening PyTorch's own takes 0.7 to 0.9 of the time in bfloat16 on a CPU, and sums the gradients of weight
and bias in bfloat16: of 4096 rows they are off by up to 20 where the float32 sum is by 0.0005, whatever the dtype of
weight.

Read next: `../relu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from minillm_kernels.dropout import dropout
from minillm_kernels.precision import working_dtype


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
    s = dropout(x, dropout_p, seed) if dropout_p > 0 and seed is not None else x  # (..., C)
    if residual is not None:
        s = s + residual
    if s.dtype == weight.dtype == working_dtype(s.dtype) and (bias is None or bias.dtype == s.dtype):
        return functional.layer_norm(s, s.shape[-1:], weight, bias, eps), s  # four conversions to the same are 4 us
    wide = s.to(working_dtype(s.dtype))
    y = functional.layer_norm(
        wide, wide.shape[-1:], weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype), eps
    )
    return y.to(x.dtype), s
