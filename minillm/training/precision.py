"""On which device and in which dtype a run computes, and why, in words.

Weights are float32 whatever is chosen here; the compute dtype is that of activations and matrix products.

Read next: `host_memory.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.errors import InputError
from minillm.training.config import ComputeDtype, Device

FAST_BF16_FLAGS = ("amx_bf16", "avx512_bf16")  # as Linux names them in /proc/cpuinfo


@dataclass(frozen=True)
class DtypeChoice:
    """A compute dtype and the reason for it, to be said aloud at the start of a run."""

    dtype: torch.dtype
    reason: str


def choose_device(name: Device, *, setting: str = "train.device") -> torch.device:
    """Return the device that is asked for; "auto" is the first of cuda, mps and cpu that is there.

    Args:
        name: the device.
        setting: where it was asked for, for the error's text.
    Raises:
        InputError: the device is not one that this machine and this PyTorch have.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in there.items() if here))
    if not there.get(name):
        have = ", ".join(kind for kind, here in there.items() if here)
        raise InputError(
            f"{setting} asks for {name}, but PyTorch {torch.__version__} finds only {have} here; take auto or {have}"
        )
    return torch.device(name)


def choose_compute_dtype(name: ComputeDtype, device: torch.device) -> DtypeChoice:
    """Return the compute dtype that is asked for; "auto" is bfloat16 where the device has fast products in it.

    Fast means a GPU with bfloat16 units, or an x86 CPU whose flags say AMX or AVX-512 BF16: on two cores with AMX a
    bfloat16 matrix product ran seven times as fast as the float32 one. Without them a CPU widens each number first.
    """
    if name != "auto":
        return DtypeChoice(getattr(torch, name), "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice(torch.bfloat16, "this GPU has bfloat16 units")
        return DtypeChoice(torch.float32, "this GPU has no bfloat16 units; train.compute_dtype=float16 may be faster")
    if device.type == "cpu":
        fast = [flag for flag in FAST_BF16_FLAGS if flag in cpu_flags()]
        if fast:
            return DtypeChoice(torch.bfloat16, f"this CPU multiplies bfloat16 in hardware ({fast[0]})")
        return DtypeChoice(torch.float32, "this CPU has no bfloat16 products (neither AMX nor AVX-512 BF16)")
    return DtypeChoice(torch.float32, f"the default on {device.type}")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets that Linux lists for the first CPU; none on other systems."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """Return the loss scaler of a float16 run, which keeps small gradients from becoming zero; None for other dtypes.

    Source: Micikevicius et al. (2017), arXiv:1710.03740, section 3.2.
    """
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
