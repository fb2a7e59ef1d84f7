"""How many operations PyTorch's counter is told of. Beside `chunks.py`, because that counter imports triton.

Read next: `fused.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


@register_flop_formula(torch.ops.minillm_kernels.linear_cross_entropy_total)
def _total_flops(hidden: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """Count the products of all N rows: which of them are ignored is not known without waiting for the device."""
    wanted = rest[-1]
    return 2 * hidden[0] * weight[0] * weight[1] * (1 + wanted[0] + wanted[1])


@register_flop_formula(torch.ops.minillm_kernels.linear_cross_entropy_losses)
def _losses_flops(hidden: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    return 2 * hidden[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.minillm_kernels.linear_cross_entropy_losses_backward)
def _losses_backward_flops(hidden: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    return _total_flops(hidden, weight, *rest)
