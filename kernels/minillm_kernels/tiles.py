"""How many tiles cover a length that may be as large as 32 bits hold: what the kernels use in place of `tl.cdiv`.

Read next: `elementwise_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def num_tiles(length, BLOCK: tl.constexpr):
    """Return ceil(length / BLOCK) of a length >= 1; tl.cdiv adds BLOCK - 1 before it divides, which can pass 2**31."""
    return (length - 1) // BLOCK + 1
