"""How tests run: Triton's kernels in its interpreter where there is no GPU, and as many threads as there are cores.

Where there is no Triton, as on macOS, what needs it is skipped: files of tests and kernels that import it, and tests of
ops and of the benchmark that do or that ask for `fused`. minillm works there: to import Triton in a test of it is an
error.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # has to be said before anything imports triton

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # a process of several (-n): each would take threads for all cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start
    torch.set_num_threads(threads)

ROOT = Path(__file__).parent
NO_TRITON = "" if find_spec("triton") else "there is no Triton for this system"
BYTES_OF_A_PROCESS = 3e9  # that runs tests


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: one a core, but no more than memory has room for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, int(memory / BYTES_OF_A_PROCESS)))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a file of tests or kernels that imports Triton be skipped where there is none."""
    report = yield
    if NO_TRITON and report.failed and "No module named 'triton'" in str(report.longrepr):
        if collector.path.relative_to(ROOT).parts[0] in ("tests", "kernels"):
            report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {NO_TRITON}")
            for name, module in list(sys.modules.items()):  # pytest leaves what broke off there, for others to import
                if getattr(module, "__file__", None) == str(collector.path):
                    del sys.modules[name]
    return report


@contextmanager
def skipping_without_triton(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test that asks for `fused` where there is no Triton, or imports it to test ops or the benchmark."""
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        asks = isinstance(error, ValueError) and "triton is not installed" in str(error)
        imports = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        if NO_TRITON and (asks or (imports and item.path.parent.name in ("kernels", "benchmarks"))):
            pytest.skip(NO_TRITON)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    with skipping_without_triton(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with skipping_without_triton(item):
        return (yield)
