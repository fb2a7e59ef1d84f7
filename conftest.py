"""How tests run: Triton's kernels in its interpreter where there is no GPU, and as many threads as there are cores."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # has to be said before anything imports triton

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # a process of several (-n): each would take threads for all cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start
    torch.set_num_threads(threads)

BYTES_OF_A_PROCESS = 3e9  # that runs tests


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: one a core, but no more than memory has room for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, int(memory / BYTES_OF_A_PROCESS)))
