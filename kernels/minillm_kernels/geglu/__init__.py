"""geglu: one half of a gated feed-forward layer, through GELU, times the other; on request with dropout.

Read next: `reference.py`, then `../rotary/__init__.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.geglu import composed, reference

__all__ = ["geglu"]


def geglu(
    gate: Tensor,
    up: Tensor,
    *,
    approximate: Literal["none", "tanh"] = "none",
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Multiply `up` by the GELU of `gate`.

        y = dropout(gelu(gate) * up, dropout_p, seed)

    Args:
        gate: (..., C), any floating dtype; goes through the non-linearity.
        up: (..., C), the shape, dtype and device of `gate`.
        approximate: which gelu, as in `gelu`: "none" (ModernBERT) or "tanh" (Gemma, T5 1.1).
        dropout_p: share of the elements of the result that are dropped; the others are scaled by 1 / (1 - dropout_p).
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0. The same seed drops the same elements.
    Returns:
        (..., C) in the dtype of `gate`; in between it is float32, but for what PyTorch's ops round on the `torch`
            backend.
    Raises:
        ValueError: the shapes or devices differ, `approximate` is another word, or `dropout_p` is no probability or has
            no seed.
        TypeError: a dtype that is not floating, two dtypes, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: reads `gate` and `up` and writes the result once, some 16 operations an element: bound by memory.
        With dropout about 11 integer operations more, each way: the kernel's backward pass draws the numbers again.
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
    checks.dropout(dropout_p, seed)
    match dispatch.choose("geglu", gate):
        case "fused":
            from minillm_kernels.geglu import fused

            return fused.geglu(gate, up, approximate, dropout_p, seed)
        case "reference":
            return reference.geglu(gate, up, approximate, dropout_p, seed)
        case _:
            return composed.geglu(gate, up, approximate, dropout_p, seed)
