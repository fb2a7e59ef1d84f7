"""The `torch` backend of swiglu.

Read next: `../geglu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from minillm_kernels.dropout import dropout


def swiglu(gate: Tensor, up: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return dropout(functional.silu(gate) * up, dropout_p, seed)
