"""The `torch` backend of dropout.

Read next: `../embedding/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor

from minillm_kernels.philox import keep


def dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """Return y; arguments as in the public function."""
    return x * keep(tuple(x.shape), p, seed, x.device) * (1 / (1 - p))  # a bool mask: one byte an element for backward
