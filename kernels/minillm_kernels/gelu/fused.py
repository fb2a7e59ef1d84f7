r"""gelu in Triton: the function and its tanh form; the kernels are in `../elementwise_kernels.py`.

Equations: `reference.py`. Triton has no tanh of its own; with the logistic function sigma(z) = 1 / (1 + exp(-z)),
tanh(u) = 2 sigma(2u) - 1, so that with z = 2a (h + b h^3)

    (1 + t) / 2 = sigma(z),   (1 - t^2) / 2 = 2 sigma(z) (1 - sigma(z))                          (12)

with one exponential and one reciprocal for both factors:

    e = exp(-z),   sigma(z) = 1 / (1 + e),   1 - sigma(z) = e sigma(z)                           (13)

With erf the kernels are bound by arithmetic: they had 38 instructions an element, and more in the backward pass, while
the memory traffic of an element of 16 bits leaves time for about 30 (an H200's 2.65 TB/s of 4.2 with erf: 2026-11-27,
Triton 3.6). So tensors of 16 bits get Phi from its tail, by one polynomial under one exponential, with u = |h|:

    Phi(-u) = exp2(q(u)),   q fitted to log2(Phi(-u)) for 0 <= u <= END                          (14)
    g = max(h, 0) - u Phi(-u)                                                                    (15)
    Phi(h) = 1 - Phi(-u) for h >= 0, Phi(-u) for h < 0                                           (16)

q has the least largest relative error of Phi(-u), by reweighted least squares in float64, weighed 5 to 1 up to u = 5.5,
where float16 has one digit left of u Phi(-u), and exact at u = 0.7518, where the slope (4) is 0. In float32 arithmetic
Phi(-u) is 1.2e-5 off for u <= 5.5 and 8e-5 beyond: 1/20 of half a step of float16 and 1/24 of one of bfloat16. From
u = 12.95 on it is less than the smallest normal number of float32, and 0 on a GPU.

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../relu2/fused.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from minillm_kernels import elementwise, elementwise_kernels
from minillm_kernels.exponential import LOG2E
from minillm_kernels.gelu import reference
from minillm_kernels.variant import Variant

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))
TWO_A = tl.constexpr(2 * reference.A)
B = tl.constexpr(reference.B)
NAN_STAYS = elementwise_kernels.NAN_STAYS
SQRT_HALF_LOG2E = tl.constexpr(math.sqrt(math.log2(math.e) / 2))  # exp(-h^2 / 2) = exp2(-(this h)^2)
END = tl.constexpr(13.2)  # Phi(-END) is below the smallest normal number of float32
DEGREE = tl.constexpr(9)  # of q
Q = tl.constexpr(  # its coefficients, that of the highest power first
    (
        -2.28324002e-09,
        1.6141009e-07,
        -5.01599935e-06,
        9.08319188e-05,
        -0.00107543109,
        0.00891024912,
        -0.0545723409,
        -0.457991222,
        -1.15140731,
        -0.999987402,
    )
)


@triton.jit
def value(h):
    return h * (0.5 + 0.5 * tl.erf(h * SQRT_HALF))  # (2), (3)


@triton.jit
def gradient(h, dy):
    slope = 0.5 + 0.5 * tl.erf(h * SQRT_HALF) + h * tl.exp(-0.5 * h * h) * DENSITY_AT_0  # (4)
    return dy * slope  # (10)


@triton.jit
def normal_tail(u):
    """Return Phi(-u) for 0 <= u <= END."""
    q = u * Q[0] + Q[1]
    for i in tl.static_range(2, DEGREE + 1):  # pyright: ignore[reportGeneralTypeIssues]
        q = q * u + Q[i]
    return tl.exp2(q)  # (14)


@triton.jit
def narrow_value(h):
    u = tl.minimum(tl.abs(h), END)
    return tl.maximum(h, 0.0, propagate_nan=NAN_STAYS) - u * normal_tail(u)  # (15)


@triton.jit
def narrow_gradient(h, dy):
    tail = normal_tail(tl.minimum(tl.abs(h), END))
    root = h * SQRT_HALF_LOG2E
    slope = tl.where(h < 0, tail, 1 - tail) + h * tl.exp2(-(root * root)) * DENSITY_AT_0  # (16), (4)
    return dy * slope  # (10)


@triton.jit
def tanh_logistic(h):
    """Return sigma(z) and 1 - sigma(z)."""
    # constants stand on the right: the interpreter takes no other order
    return elementwise_kernels.logistic(h * (h * h * (-TWO_A * B * LOG2E) - TWO_A * LOG2E))


@triton.jit
def tanh_value(h):
    sigma, _ = tanh_logistic(h)  # pyright: ignore[reportGeneralTypeIssues]
    return h * sigma  # (6), (12)


@triton.jit
def tanh_gradient(h, dy):
    sigma, rest = tanh_logistic(h)  # pyright: ignore[reportGeneralTypeIssues]
    slope = sigma + h * (sigma * rest) * (h * h * (3 * TWO_A * B) + TWO_A)  # (7), (12)
    return dy * slope  # (10)


FUNCTIONS = {
    "none": elementwise.Function(value, gradient, narrow=elementwise.Function(narrow_value, narrow_gradient)),
    # Both passes of 65,536 x 3072 take 487.3 us beside 517.2 with tiles of 2048 (H200, bfloat16, 2026-11-28).
    "tanh": elementwise.Function(tanh_value, tanh_gradient, backward_tile=1024),
}
_op = elementwise.register_unary("gelu", FUNCTIONS, reference.gelu)


def gelu(x: Tensor, bias: Tensor | None, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    return _op(x, bias, approximate, dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.unary_variants("gelu", FUNCTIONS)
