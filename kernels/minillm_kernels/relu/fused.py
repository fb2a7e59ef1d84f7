r"""relu in Triton: the function itself; the kernels are in `../elementwise_kernels.py`.

Equations: `reference.py`.

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../gelu/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import elementwise
from minillm_kernels.relu import reference
from minillm_kernels.variant import Variant


@triton.jit
def value(h):
    return tl.where(h <= 0, 0.0, h)  # (2); not max(h, 0), which makes 0 of NaN


@triton.jit
def gradient(h, dy):
    return tl.where(h > 0, dy, 0.0)  # (5)


FUNCTIONS = {"": elementwise.Function(value, gradient)}
_op = elementwise.register_unary("relu", FUNCTIONS, lambda x, bias, form, p, seed: reference.relu(x, bias, p, seed))


def relu(x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return _op(x, bias, "", dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.unary_variants("relu", FUNCTIONS)
