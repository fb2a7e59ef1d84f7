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

# What makes a CPU fast at bfloat16, as Linux names it in /proc/cpuinfo, and the width of a model from which a training
# step is then faster in it: below, casts cost more than products save. Time in float32 over time in bfloat16, forward
# and backward, decoders of 4 layers as in GPT-2 and as in Llama, 2 cores of an AMD EPYC with AVX-512 BF16, 2026-11-25:
#     width                 16          32          64          128         192
#     768 tokens a step     0.53, 0.65  0.95, 0.82  0.99, 0.96  1.32, 1.19  1.46, 1.32
#     4,096 tokens a step   0.97, 0.83  1.11, 1.08  1.50, 1.25  1.50, 1.40  1.57, 1.59
# A rule and not a trial run, whose winner would change with what else the machine does, and the weights with it. AMX
# was not at hand: its bound is taken from AVX-512.
FAST_BF16 = {"amx_bf16": 64, "avx512_bf16": 64}


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


def choose_compute_dtype(name: ComputeDtype, device: torch.device, *, width: int | None = None) -> DtypeChoice:
    """Return the compute dtype that is asked for; "auto" is bfloat16 where the device is faster in it.

    That is a GPU with bfloat16 units, or an x86 CPU whose flags say AMX or AVX-512 BF16 under a model that is wide
    enough; see `FAST_BF16`. Without them a CPU widens each number first.

    Args:
        name: what is asked for.
        device: where the model computes.
        width: of its residual stream; None: wide enough.
    """
    if name != "auto":
        return DtypeChoice(getattr(torch, name), "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice(torch.bfloat16, "this GPU has bfloat16 units")
        return DtypeChoice(torch.float32, "this GPU has no bfloat16 units; train.compute_dtype=float16 may be faster")
    if device.type == "cpu":
        flag = next((flag for flag in FAST_BF16 if flag in cpu_flags()), None)
        if flag is None:
            return DtypeChoice(torch.float32, "this CPU has no bfloat16 products (neither AMX nor AVX-512 BF16)")
        if width is not None and width < FAST_BF16[flag]:
            return DtypeChoice(
                torch.float32,
                f"this CPU's bfloat16 ({flag}) pays from width {FAST_BF16[flag]} on, the model's is {width}",
            )
        return DtypeChoice(torch.bfloat16, f"this CPU multiplies bfloat16 in hardware ({flag})")
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
