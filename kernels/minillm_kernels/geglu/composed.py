"""The `torch` backend of geglu.

Read next: `../rotary/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from minillm_kernels.dropout import dropout


def geglu(gate: Tensor, up: Tensor, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return dropout(functional.gelu(gate, approximate=approximate) * up, dropout_p, seed)
