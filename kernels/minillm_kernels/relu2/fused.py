r"""relu2 in Triton: the function itself; the kernels are in `../elementwise_kernels.py`.

Equations: `reference.py`.

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../swiglu/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import elementwise
from minillm_kernels.relu2 import reference
from minillm_kernels.variant import Variant


@triton.jit
def value(h):
    positive = tl.where(h <= 0, 0.0, h)  # not max(h, 0), which makes 0 of NaN
    return positive * positive  # (2)


@triton.jit
def gradient(h, dy):
    return 2 * tl.where(h <= 0, 0.0, h) * dy  # (5)


FUNCTIONS = {"": elementwise.Function(value, gradient)}
_op = elementwise.register_unary("relu2", FUNCTIONS, lambda x, bias, form, p, seed: reference.relu2(x, bias, p, seed))


def relu2(x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return _op(x, bias, "", dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.unary_variants("relu2", FUNCTIONS)
