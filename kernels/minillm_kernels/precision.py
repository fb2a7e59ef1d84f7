"""In which dtype an op works inside, whatever dtype its activations have.

Read next: `rms_norm/reference.py`, where it is used first.
"""

import torch


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for statistics, sums and losses: float64 for float64, else float32.

    bfloat16 has 8 significant bits: a sum of 256 ones is 256, and so is a sum of 257.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
