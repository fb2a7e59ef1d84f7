"""In which dtype an op works inside, whatever dtype its activations have.

Read next: `rms_norm/reference.py`, where it is used first.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for statistics, sums and losses: float64 for float64, else float32.

    bfloat16 has 8 significant bits: a sum of 256 ones is 256, and so is a sum of 257.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(function: Function) -> Function:
    """Let the dtypes of the tensors decide in a function, as they do in a kernel, and not torch.autocast.

    torch.autocast would round the operands of every matrix product inside, in the oracle too. The device is that of the
    first tensor.
    """

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        kind = next(x.device.type for x in inputs if isinstance(x, torch.Tensor))
        # The compiler asks once, where the forward pass is traced, for the backward pass too.
        if kind == "meta":  # which torch.autocast does not know
            return function(*inputs, **options)
        if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(kind):
            return function(*inputs, **options)
        with torch.autocast(kind, enabled=False):
            return function(*inputs, **options)

    return cast(Function, call)
