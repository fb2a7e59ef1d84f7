"""How many operations PyTorch's counter is told of. Beside `chunks.py`, because that counter imports triton.

Read next: `fused.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.minillm_kernels


@register_flop_formula([_ops.linear_cross_entropy_total, _ops.linear_cross_entropy_losses_backward])
def _total_flops(hidden: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    wanted = rest[-1]
    return _losses_flops(hidden, weight, *rest) * (1 + wanted[0] + wanted[1])


@register_flop_formula(_ops.linear_cross_entropy_losses)
def _losses_flops(hidden: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """Count the products of the rows that count, or of all where their number is not known without waiting for it."""
    num_targets = rest[7]
    return 2 * (hidden[0] if num_targets is None else num_targets) * weight[0] * weight[1]
