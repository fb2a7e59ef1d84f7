"""What the launchers of the memory-bound kernels share: tensors as rows, sizes of grids, devices, variants.

These kernels move bytes and do little else, so that their launchers decide the same things: how many programs keep
every multiprocessor busy, and how a tensor of any rank is walked without a copy.

Read next: `row_norm_kernels.py`, then `elementwise_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm_kernels.variant import Variant

WARP = 64 if torch.version.hip else 32  # threads
INTERPRETED_SMS = 2  # few, so that each interpreted program has several tiles to walk
TRITON_TYPE = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TARGETS = {32: ("sm_80", "sm_90", "sm_100"), 64: ("gfx942",)}  # by the number of threads in a warp


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    first: Tensor,
    *others: Any,
    threads: int,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Run `kernel[grid]` on the GPU of its first argument: Triton takes the current one, not that of the tensors.

    Args:
        threads: of a program.
        registers: the most that a thread may have, on NVIDIA's; None: the compiler's choice.
    """
    if registers is not None and WARP == 32:
        constants["maxnreg"] = registers
    with torch.cuda.device_of(first):
        kernel[grid](first, *others, **constants, num_warps=threads // WARP)


def cdiv(number: int, size: int) -> int:
    """Return how many blocks of `size` cover `number`."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below `number`, which is at least 1.

    >>> next_power_of_2(1), next_power_of_2(768)
    (1, 1024)
    """
    return 1 << (number - 1).bit_length()


@cache
def num_sms(device: torch.device) -> int:
    """Return the number of multiprocessors; what is summed in two stages has its number of partial sums from it."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else INTERPRETED_SMS


def rows_of(x: Tensor) -> Tensor:
    """Return x (..., C) as (R, C) with neighbouring columns side by side; copied only where no row stride does that.

    >>> rows_of(torch.zeros(2, 3, 8)[..., :4]).stride()
    (8, 1)
    """
    rows = x.reshape(-1, x.shape[-1] if x.ndim else 1)
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def with_factor(p: float) -> tuple[float, float]:
    """Return p and 1 / (1 - p), which a kernel would have to take from p in float32: at p = 0.999 it is 1e-5 off.

    >>> with_factor(0.75)
    (0.75, 4.0)
    """
    return p, 1.0 / (1.0 - p)


def make_variant(
    op: str,
    name: str,
    kernel: Any,
    types: Mapping[str, Any],
    constants: Mapping[str, Any],
    *,
    threads: int,
    warp: int,
    registers: int | None = None,
) -> Variant:
    """Return one way in which `kernel` is compiled, for tensors whose rows start at multiples of 16 bytes.

    Args:
        types: of the parameters that are neither constant nor i32, such as {"x_ptr": "*fp16", "eps": "fp32"};
            a tuple of types for a tuple of strides.
        constants: constexpr parameters.
        threads, registers: as in `launch`.
        warp: 32 or 64 threads, which says the targets.
    """
    signature = {
        parameter: "constexpr" if parameter in constants else types.get(parameter, "i32")
        for parameter in kernel.arg_names
    }
    aligned = {p for p in signature if p.endswith(("_ptr", "_stride", "_strides", "num_cols"))}
    return Variant(
        op=op,
        name=name if warp == 32 else f"{name}, warps of {warp}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=frozenset(p for p in aligned if signature[p] != "constexpr") - {"seed_ptr"},
        num_warps=max(1, threads // warp),
        max_registers=registers if warp == 32 else None,
        targets=TARGETS[warp],
    )
