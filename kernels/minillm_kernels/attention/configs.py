"""Launch configurations of the attention kernels, by device class, kernel, dtype and width of a head.

sm_90's rows "forward", "dk_dv" and "dq" were measured at widths 64 and 128: of a dozen settings each the fastest that
spills no register in causal rows (an H200, 2026-11-27, Triton 3.6, bfloat16, 2048 tokens: `benchmarks/GPU_LADDER.md`).
Small tiles won: 64 queries beside 64 keys for 4 warps took 0.86 of the time of 128 queries in the forward pass. Widths
16 and 32 follow 64; dk_dv of grouped heads spills 32 bytes a lane.

With a dropout, a bias, a softcap, alibi or segments ("heavy") a pair of query and key takes more registers: a random
number several, the address of a bias two. Those calls have smaller tiles, measured likewise with dropout (2026-11-28):
four warps in place of eight in dk_dv took both passes at width 64 from 1549 us to 977. At width 128 it spills 12 bytes
a lane, and is the fastest still; only a call with all of these at once spills much. All other entries come from the
compile report (`../../COMPILE_REPORT.md`), so that few registers are spilled to memory, or none.

float16 and bfloat16 use the warpgroup instructions on sm_90, but for decoding: its tile has 16 rows, those want 64.
float32 multiplies as "ieee", without tensor cores: tf32x3 keeps some 22 of 24 bits, and an error may be no more than
twice that of the plain maths in float32.

The kernel of `hopper.py`, for calls under MINILLM_HOPPER=1, has its own in `hopper_launcher.py`.

MINILLM_AUTOTUNE=1 in the environment times each configuration and its neighbours at the first call of a kind.

Read next: `arguments.py`, then `fused.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from minillm_kernels.attention.scores import Dropout, Terms, Visibility
from minillm_kernels.launching import next_power_of_2

Kernel = Literal["forward", "dk_dv", "dq", "dbias", "decode"]
Device = Literal["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"]
DEVICES: tuple[Device, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")
DELTA_ROWS = 32  # queries of a program of the delta kernel, which only reads and adds
WIDTHS = (16, 32, 64, 128, 256)  # of a head, after padding to a power of two


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    block_m: queries of a tile. block_n: keys of a tile. num_warps: of a program. num_stages: tiles in flight.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def _row(*entries: tuple[int, int, int, int]) -> tuple[Launch, ...]:
    return tuple(Launch(*entry) for entry in entries)


# block_m, block_n, num_warps, num_stages for heads of width 16, 32, 64, 128, 256; dbias has a bias, so is always heavy
_HOPPER = {
    "forward": _row((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 2)),
    "dk_dv": _row((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (32, 128, 8, 3), (32, 64, 8, 2)),
    "dq": _row((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (64, 32, 4, 2)),
    "decode": _row((16, 64, 4, 3), (16, 64, 4, 3), (16, 64, 4, 3), (16, 64, 4, 2), (16, 32, 4, 2)),
    "forward heavy": _row((64, 32, 4, 3), (64, 32, 4, 3), (64, 32, 4, 3), (64, 16, 4, 3), (64, 16, 8, 2)),
    "dk_dv heavy": _row((16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 8, 1)),
    "dq heavy": _row((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 16, 4, 2), (64, 16, 8, 1)),
    "dbias heavy": _row((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 1)),
    "decode heavy": _row((16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 1)),
    "forward float32": _row((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (32, 16, 8, 2), (16, 16, 4, 1)),
    "dk_dv float32": _row((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    "dq float32": _row((32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
    "dbias float32": _row((32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    "decode float32": _row((16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2), (16, 16, 4, 1)),
}
_FLOAT32 = {name: row for name, row in _HOPPER.items() if name.endswith("float32")}
# at most 99 KiB of shared memory, so that sm_86 and sm_89, with three fifths of an A100's, run it as well
_AMPERE = {
    "forward": _row((128, 64, 4, 3), (128, 64, 4, 3), (128, 64, 4, 2), (64, 64, 4, 2), (64, 32, 4, 1)),
    "dk_dv": _row((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2), (32, 64, 8, 2), (16, 32, 4, 1)),
    "dq": _row((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2), (64, 32, 8, 2), (32, 16, 4, 1)),
    "decode": _row((16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2)),
    "forward heavy": _row((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 16, 8, 2), (32, 16, 4, 1)),
    "dk_dv heavy": _row((16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 4, 2), (16, 64, 8, 1), (16, 32, 8, 1)),
    "dq heavy": _row((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 16, 8, 1), (32, 16, 8, 1)),
    "dbias heavy": _row((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 1), (32, 16, 4, 1)),
    "decode heavy": _row((16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 2), (16, 32, 4, 1), (16, 16, 4, 1)),
} | _FLOAT32
# 64 KiB of shared memory
_CDNA3 = {
    "forward": _row((128, 64, 4, 1), (128, 64, 4, 1), (128, 64, 4, 1), (128, 32, 4, 1), (64, 16, 4, 1)),
    "dk_dv": _row((32, 64, 4, 1), (32, 64, 4, 1), (32, 64, 4, 1), (16, 64, 4, 1), (16, 32, 4, 1)),
    "dq": _row((64, 32, 4, 1), (64, 32, 4, 1), (64, 32, 4, 1), (64, 16, 4, 1), (32, 16, 4, 1)),
    "decode": _row((16, 64, 4, 1), (16, 64, 4, 1), (16, 64, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    "forward heavy": _row((64, 32, 4, 1), (64, 32, 4, 1), (64, 32, 4, 1), (64, 16, 4, 1), (32, 16, 4, 1)),
    "dk_dv heavy": _row((16, 64, 4, 1), (16, 64, 4, 1), (16, 64, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    "dq heavy": _row((64, 16, 4, 1), (64, 16, 4, 1), (64, 16, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
    "dbias heavy": _row((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
    "decode heavy": _row((16, 32, 4, 1), (16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
} | {name: tuple(replace(entry, num_stages=1) for entry in row) for name, row in _FLOAT32.items()}
TABLE: dict[Device, dict[str, tuple[Launch, ...]]] = {
    "sm_80": _AMPERE,
    "sm_90": _HOPPER,
    "sm_100": _HOPPER,
    "gfx942": _CDNA3,
}


def padded_width(D: int) -> int:
    """Return the power of two, 16 or more, that a head of width `D` is padded to."""
    return max(16, next_power_of_2(D))


def device_class(device: torch.device) -> Device:
    """Return the column of the table for a device.

    A device that is none of them, such as sm_120, has no instructions of its own for whole warpgroups and, as sm_86,
    less than half of a large GPU's shared memory: it takes the oldest column.
    """
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    classes: dict[int, Device] = {9: "sm_90", 10: "sm_100"}
    return classes.get(major, "sm_80")


_INTERPRETED = Launch(16, 16, 4, 1)  # small, so that small tests have several tiles of each kind


def is_heavy(see: Visibility, terms: Terms, drop: Dropout) -> bool:
    """Return whether a call's scores need much more than a product and a comparison: smaller tiles then."""
    asked = (terms.alibi, terms.bias, terms.softcap, drop.seed, see.segments)
    return any(option is not None for option in asked)


def launch(kernel: Kernel, device: Device, dtype: torch.dtype, D: int, heavy: bool) -> Launch:
    """Return the launch configuration of one kernel for heads of width `D`."""
    if device == "interpreter":
        return _INTERPRETED
    return _table(device, kernel, dtype == torch.float32, heavy)[WIDTHS.index(padded_width(D))]


def _table(device: Device, kernel: Kernel, wide: bool, heavy: bool) -> tuple[Launch, ...]:
    rows = TABLE[device]
    return rows[kernel + (" float32" if wide else " heavy" if heavy else "")]


def run(kernel: Kernel, q: torch.Tensor, heavy: bool, launcher: Callable[[Launch], None], key: Hashable) -> None:
    """Launch a kernel as the table says, or as the autotuner found for calls with this `key`."""
    device = device_class(q.device)
    chosen = launch(kernel, device, q.dtype, q.shape[-1], heavy)
    if _AUTOTUNE and device != "interpreter":
        chosen = _tuned(chosen, launcher, (kernel, q.device, q.dtype, q.shape[-1], heavy, key))
    launcher(chosen)


_AUTOTUNE = os.environ.get("MINILLM_AUTOTUNE") == "1"  # time a few configurations at the first call of each kind
_found: dict[Hashable, Launch] = {}


def _tuned(start: Launch, launcher: Callable[[Launch], None], kind: Hashable) -> Launch:
    """Return the fastest of a configuration and its neighbours for one kind of call, timed once in a process."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    if kind not in _found:

        def milliseconds(config: Launch) -> float:
            try:
                return cast(float, do_bench(lambda: launcher(config)))
            except OutOfResources:
                return math.inf

        _found[kind] = min(neighbours(start), key=milliseconds)
    return _found[kind]


def neighbours(config: Launch) -> list[Launch]:
    """Return a configuration and those with one number changed: a tile or the warps by 2, the stages by 1."""
    changed = [
        replace(config, **{name: size})
        for name in ("block_m", "block_n")
        for size in (getattr(config, name) // 2, getattr(config, name) * 2)
        if 16 <= size <= 128
    ]
    changed += [replace(config, num_warps=n) for n in (config.num_warps // 2, config.num_warps * 2) if n in (4, 8)]
    changed += [
        replace(config, num_stages=n) for n in (config.num_stages - 1, config.num_stages + 1) if n in (1, 2, 3, 4)
    ]
    return [config, *changed]
