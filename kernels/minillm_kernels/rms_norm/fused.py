r"""rms_norm in Triton: the kernels of `../row_norm_kernels.py`, which layer_norm shares, without the mean.

Equations: `reference.py`; (2), (3), (5), (6), (7), (8) there are (3), (4), (7), (8), (9), (10) in the kernels.

Read next: `../row_norm_kernels.py`, then `../row_norm.py` and `../layer_norm/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from minillm_kernels import row_norm
from minillm_kernels.rms_norm import reference
from minillm_kernels.variant import Variant


def _maths(s: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = reference.rms_norm_forward(s, weight, bias, eps)
    return y, rstd.new_empty(0), rstd[..., 0]


def _maths_backward(dy: Tensor, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.rms_norm_backward(dy, s, weight, rstd[..., None])


rms_norm = row_norm.register("rms_norm", False, _maths, _maths_backward)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return row_norm.variants("rms_norm", centre=False)
