"""geglu: one half of a gated feed-forward layer, through GELU, times the other.

Read next: `reference.py`, then `../rotary/__init__.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.geglu import composed, reference

__all__ = ["geglu"]


def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """Multiply `up` by the GELU of `gate`.

        y = gelu(gate) * up

    Args:
        gate: (..., C), any floating dtype; goes through the non-linearity.
        up: (..., C), the shape, dtype and device of `gate`.
        approximate: which gelu, as in `gelu`: "none" (ModernBERT) or "tanh" (Gemma, T5 1.1).
    Returns:
        (..., C) in the dtype of `gate`; the maths in between is in float32.
    Raises:
        ValueError: the shapes or devices differ, or `approximate` is another word.
        TypeError: a dtype that is not floating, or two dtypes.

    Cost: reads `gate` and `up` and writes the result once, some 16 operations an element: bound by memory.
    Source: Shazeer (2020), arXiv:2002.05202.

    >>> import torch
    >>> geglu(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))
    tensor([0.0000, 1.6827])
    """
    checks.floating("gate", gate)
    checks.shape("up", up, gate.shape, "the shape of gate")
    checks.same_dtype("gate", gate, up=up)
    checks.same_device("gate", gate, up=up)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is 'none' or 'tanh', got {approximate!r}")
    match dispatch.choose("geglu", gate):
        case "fused":
            from minillm_kernels.geglu import fused

            return fused.geglu(gate, up, approximate)
        case "reference":
            return reference.geglu(gate, up, approximate=approximate)
        case _:
            return composed.geglu(gate, up, approximate=approximate)
