"""The exponential of the kernels: exp(x) = exp2(x * log2(e)), and exp2 is what a GPU has.

Read next: `cross_entropy/fused.py`.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def exponential(x):
    """Return exp(x), and 0 below 2^-126: tl.exp spends three of its five instructions on numbers as small as that."""
    return tl.exp2(x * LOG2E)
