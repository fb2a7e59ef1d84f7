"""The `torch` backend of swiglu.

Read next: `../geglu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return functional.silu(gate) * up
