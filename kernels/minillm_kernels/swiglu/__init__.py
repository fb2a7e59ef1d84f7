"""swiglu: one half of a gated feed-forward layer, through SiLU, times the other; on request with dropout.

Read next: `reference.py`, then `../geglu/__init__.py`.
"""

from __future__ import annotations

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.swiglu import composed, reference

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, dropout_p: float = 0.0, seed: int | Tensor | None = None) -> Tensor:
    """Multiply `up` by the SiLU of `gate`.

        y = dropout(gate * sigmoid(gate) * up, dropout_p, seed)

    Args:
        gate: (..., C), any floating dtype; goes through the non-linearity.
        up: (..., C), the shape, dtype and device of `gate`.
        dropout_p: share of the elements of the result that are dropped; the others are scaled by 1 / (1 - dropout_p).
        seed: int or 0-dim int64 tensor; needed when dropout_p > 0. The same seed drops the same elements.
    Returns:
        (..., C) in the dtype of `gate`; in between it is float32, but for what PyTorch's ops round on the `torch`
            backend.
    Raises:
        ValueError: the shapes or devices differ, or `dropout_p` is no probability or has no seed.
        TypeError: a dtype that is not floating, two dtypes, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: reads `gate` and `up` and writes the result once, about 6 operations an element: bound by memory.
        With dropout about 11 integer operations more, each way: the kernel's backward pass draws the numbers again.
    Source: Shazeer (2020), arXiv:2002.05202.

    >>> import torch
    >>> swiglu(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))
    tensor([0.0000, 1.4621])
    """
    checks.floating("gate", gate)
    checks.shape("up", up, gate.shape, "the shape of gate")
    checks.same_dtype("gate", gate, up=up)
    checks.same_device("gate", gate, up=up)
    checks.dropout(dropout_p, seed)
    match dispatch.choose("swiglu", gate):
        case "fused":
            from minillm_kernels.swiglu import fused

            return fused.swiglu(gate, up, dropout_p, seed)
        case "reference":
            return reference.swiglu(gate, up, dropout_p, seed)
        case _:
            return composed.swiglu(gate, up, dropout_p, seed)
