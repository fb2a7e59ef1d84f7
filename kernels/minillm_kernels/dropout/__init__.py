"""dropout: zero a share of the elements, as a pure function of the seed and each element's place.

Read next: `reference.py` for the maths, `../philox.py` for the random numbers.
"""

from __future__ import annotations

from torch import Tensor

from minillm_kernels import checks, dispatch
from minillm_kernels.dropout import composed, reference

__all__ = ["dropout"]


def dropout(x: Tensor, p: float, seed: int | Tensor | None) -> Tensor:
    """Zero each element with probability `p` and scale the others, so that the expectation stays.

        y[i] = x[i] / (1 - p) if uniform(seed)[i] >= p else 0          i: row and column; see `../philox.py`

    Args:
        x: (...), any floating dtype.
        p: share that is dropped, in [0, 1); rounded up to a multiple of 2^-16, while the scale is that of p itself.
        seed: int or 0-dim int64 tensor; needed when p > 0. The same seed drops the same elements on every backend.
    Returns:
        (...) in the dtype of `x`; `x` itself when p is 0.
    Raises:
        ValueError: `p` outside [0, 1), or no seed.
        TypeError: a dtype that is not floating, or a seed that is neither an int nor a 0-dim int64 tensor.

    Cost: about 11 integer operations an element for the random numbers; one byte an element is kept for backward, by
        the kernel none: it draws them again.
    Source: Srivastava et al. (2014), JMLR 15.

    >>> import torch
    >>> dropout(torch.ones(4), 0.5, seed=3)
    tensor([2., 0., 0., 0.])
    """
    checks.floating("x", x)
    checks.dropout(p, seed, "p")
    if p == 0 or seed is None:
        return x
    match dispatch.choose("dropout", x):
        case "fused":
            from minillm_kernels.dropout import fused

            return fused.dropout(x, p, seed)
        case "reference":
            return reference.dropout(x, p, seed)
        case _:
            return composed.dropout(x, p, seed)
