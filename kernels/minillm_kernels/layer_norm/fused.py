r"""layer_norm in Triton: the kernels of `../row_norm_kernels.py` with the mean taken off.

Equations: `reference.py`, whose numbers the kernels carry. The variance is the mean of centred squares here too: the
row is in registers, so that the second look at it is free.

Read next: `../row_norm_kernels.py`, then `../relu/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from minillm_kernels import row_norm
from minillm_kernels.layer_norm import reference
from minillm_kernels.variant import Variant


def _maths(s: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, _, rstd = reference.layer_norm_forward(s, weight, bias, eps)
    return y, s.mean(-1), rstd[..., 0]


def _maths_backward(dy: Tensor, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x_hat = (s - mean[..., None]) * rstd[..., None]
    return reference.layer_norm_backward(dy, x_hat, weight, rstd[..., None])


layer_norm = row_norm.register("layer_norm", True, _maths, _maths_backward)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return row_norm.variants("layer_norm", centre=True)
