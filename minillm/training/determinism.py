"""`train.deterministic`: the same input gives the same bits, or an error that names the op that cannot promise it.

On a CPU with one number of threads, minillm's own ops and PyTorch's are deterministic as they are. On a GPU some of
PyTorch's add up in whatever order their threads come.

Read next: `trainer.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minillm.errors import InputError

NO_PROMISE = "does not have a deterministic implementation"
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats itself only with a workspace of fixed size; read at its start


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Let PyTorch choose only deterministic algorithms inside the block; what it chose from before comes back.

    CUBLAS_WORKSPACE_CONFIG, where the environment has none, is set for the rest of the process: cuBLAS reads it once.

    Args:
        on: False: change nothing.
    Raises:
        InputError: an op has no such algorithm; the text names it.
    """
    if not on:
        yield
        return
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if NO_PROMISE not in str(error):
            raise
        op = str(error).partition(NO_PROMISE)[0].strip()
        raise InputError(
            f"train.deterministic = true, and {op} {NO_PROMISE} here; take another setting, or leave it out"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]
