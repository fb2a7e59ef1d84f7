r"""gelu in Triton: the function and its tanh form; the kernels are in `../elementwise_kernels.py`.

Equations: `reference.py`. Triton has no tanh of its own; with the logistic function sigma(z) = 1 / (1 + exp(-z)),
tanh(u) = 2 sigma(2u) - 1, so that with z = 2a (h + b h^3)

    (1 + t) / 2 = sigma(z),   (1 - t^2) / 2 = 2 sigma(z) (1 - sigma(z))                          (12)

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../relu2/fused.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import elementwise, elementwise_kernels
from minillm_kernels.gelu import reference
from minillm_kernels.variant import Variant

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))
TWO_A = tl.constexpr(2 * reference.A)
B = tl.constexpr(reference.B)


@triton.jit
def value(h):
    return h * (0.5 + 0.5 * tl.erf(h * SQRT_HALF))  # (2), (3)


@triton.jit
def gradient(h, dy):
    slope = 0.5 + 0.5 * tl.erf(h * SQRT_HALF) + h * tl.exp(-0.5 * h * h) * DENSITY_AT_0  # (4)
    return dy * slope  # (10)


@triton.jit
def tanh_value(h):
    # constants stand on the right: the interpreter takes no other order
    return h * elementwise_kernels.logistic((h + h * h * h * B) * TWO_A)  # (6), (12)


@triton.jit
def tanh_gradient(h, dy):
    z = (h + h * h * h * B) * TWO_A
    e = tl.exp(-tl.abs(z))
    bell = e / ((1 + e) * (1 + e))  # sigma(z) (1 - sigma(z)), without the digits that 1 - sigma loses
    slope = elementwise_kernels.logistic(z) + h * bell * TWO_A * (1 + h * h * (3 * B))  # (7), (12)
    return dy * slope  # (10)


FUNCTIONS = {
    "none": elementwise.Function(value, gradient),
    "tanh": elementwise.Function(tanh_value, tanh_gradient),
}
_op = elementwise.register_unary("gelu", FUNCTIONS, reference.gelu)


def gelu(x: Tensor, bias: Tensor | None, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return _op(x, bias, approximate, dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.unary_variants("gelu", FUNCTIONS)
