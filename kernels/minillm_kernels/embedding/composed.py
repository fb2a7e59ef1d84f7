"""The `torch` backend of embedding.

Read next: `../attention/__init__.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return the rows; arguments as in the public function."""
    return F.embedding(tokens, weight)
