"""The `torch` backend of relu.

Read next: `../gelu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from minillm_kernels.dropout import dropout


def relu(x: Tensor, bias: Tensor | None, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `x`; arguments as in the public function."""
    h = x if bias is None else x + bias  # float32 for a float32 bias beside a narrower x
    return dropout(functional.relu(h), dropout_p, seed).to(x.dtype)
