"""Tokens per second, and the share of the hardware that they use (MFU), by a stated formula.

    MFU = tokens_per_second * flops_per_token / yardstick                          in [0, 1]

`minillm.model.count.flops_per_token` states what counts and computes it; the trainer is handed the number.

The yardstick is the data sheet's dense bfloat16 / float16 rate for a GPU that is listed here. For any other GPU, for a
CPU and for float32 it is the rate of a large matrix product, measured at the start, and is called that: nobody
publishes a peak for a laptop's CPU, and an invented one makes an invented MFU.

Read next: `progress.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# Dense bfloat16 tensor-core rate in FLOP/s, accumulated in float32, by the whole name that PyTorch gives the GPU: a
# slice of one (MIG) and variants that are not here are measured. Sources: NVIDIA's data sheets of A100 (2021), H100 and
# H200 (2024), L40S (2023), L4 (2023) and A10 (2021), where these are half of the figures "with sparsity"; NVIDIA's
# white papers of Ada (AD102) and Ampere (GA102) for the two GeForce cards; AMD's data sheet of MI300X (2023).
DATA_SHEET = {
    r"NVIDIA A100-\w+-\d+GB": 312e12,
    r"NVIDIA H100 80GB HBM3": 989e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H200": 989e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA A10": 125e12,
    r"NVIDIA GeForce RTX 4090": 165.2e12,
    r"NVIDIA GeForce RTX 3090": 71e12,
    r"AMD Instinct MI300X": 1307e12,
}


@dataclass(frozen=True)
class Yardstick:
    """What a run's FLOP/s are divided by, and what that is called."""

    flops_per_second: float
    name: str


def yardstick(device: torch.device, dtype: torch.dtype) -> Yardstick:
    """Return the data sheet's rate where the GPU is known and the dtype is bfloat16 or float16, else a measured rate.

    Cost: the measurement takes under half a second; on a known GPU there is none.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        gpu = torch.cuda.get_device_name(device)
        if (rate := data_sheet_rate(gpu)) is not None:
            return Yardstick(rate, f"{rate / 1e12:.0f} TFLOP/s, the data sheet's dense rate of {gpu}")
    rate = measured_product_rate(device, dtype)
    return Yardstick(
        rate, f"{rate / 1e9:,.0f} GFLOP/s, the measured product rate ({str(dtype).removeprefix('torch.')})"
    )


def data_sheet_rate(gpu: str) -> float | None:
    """Return the FLOP/s of `DATA_SHEET` by the whole name that PyTorch gives a GPU, or None where it is not listed.

    >>> data_sheet_rate("NVIDIA H100 80GB HBM3"), data_sheet_rate("NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    (989000000000000.0, None)
    """
    return next((rate for name, rate in DATA_SHEET.items() if re.fullmatch(name, gpu)), None)


def measured_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the best of a few products of square matrices.

        rate = 2 * n^3 / seconds,  n = 1024 on a CPU, 4096 on a GPU (where 1024 would measure the launch)

    Args:
        device: where; on a CPU with the number of threads that is set.
        dtype: of both factors.

    Cost: ends after 0.3 seconds, or after two products where those take longer. Draws from its own generator.
    """
    size = 1024 if device.type == "cpu" else 4096
    generator = torch.Generator().manual_seed(0)  # not zeros: a GPU runs those faster than real numbers
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    start = time.perf_counter()
    best, runs = float("inf"), 0
    while runs < 2 or time.perf_counter() - start < 0.3:
        before = time.perf_counter()
        (a @ b)[0, 0].item()  # reading one number waits for the GPU
        best, runs = min(best, time.perf_counter() - before), runs + 1
    return 2 * size**3 / best


class Stopwatch:
    """Counts tokens, steps and seconds of training alone: evaluation and saving stand outside, in `paused` blocks."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.tokens = self.steps = 0
        self._paused = 0.0
        self._last_seconds, self._last_tokens = 0.0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of `training_seconds`."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """All seconds since the start."""
        return time.perf_counter() - self.began

    @property
    def training_seconds(self) -> float:
        """Seconds since the start without those in `paused` blocks."""
        return self.seconds - self._paused

    @property
    def tokens_per_second(self) -> float:
        """The rate since the start."""
        return self.tokens / max(self.training_seconds, 1e-9)

    @property
    def steps_per_second(self) -> float:
        """The rate of optimiser steps since the start."""
        return self.steps / max(self.training_seconds, 1e-9)

    def lap(self) -> float:
        """Return the tokens per second since the last lap, and begin a new one."""
        seconds, tokens = self.training_seconds, self.tokens
        rate = (tokens - self._last_tokens) / max(seconds - self._last_seconds, 1e-9)
        self._last_seconds, self._last_tokens = seconds, tokens
        return rate
