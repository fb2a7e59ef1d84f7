"""The `torch` backend of geglu.

Read next: `../rotary/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def geglu(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return functional.gelu(gate, approximate=approximate) * up
