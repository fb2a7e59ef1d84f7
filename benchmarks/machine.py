"""The header of a result: what was measured on, with what, from which commit.

Read next: `worker.py`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMI_FIELDS = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "persistence_mode",
    "clocks_throttle_reasons.active",
)


def header() -> dict[str, Any]:
    """Return everything that a reader needs to believe, or to doubt, the numbers below it."""
    import torch

    on_gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "kind": "cuda" if on_gpu else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {n: v for n in ("torch", "triton", "numpy", "transformers", "liger_kernel") if (v := version(n))},
    }
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "capability": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "smi": driver_says(SMI_FIELDS),
        }
    return found


def commit() -> str:
    """Return the short commit, with "-dirty" where the working tree differs; "unknown" outside of a repository."""
    commit = output_of("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    if not commit:
        return "unknown"
    return commit + "-dirty" * bool(output_of("git", "-C", str(ROOT), "status", "--porcelain", "-uno"))


def driver_says(fields: Sequence[str]) -> dict[str, str]:
    """Return what nvidia-smi says now of the fields that this driver knows; nothing where there is no nvidia-smi."""
    together = smi(",".join(fields)).split(", ")  # one field that it does not know fails them all
    if len(together) == len(fields):
        return dict(zip(fields, together, strict=True))
    return {name: value for name in fields if (value := smi(name))}


def clock() -> str:
    """Return the clock of the multiprocessors now, such as "1980 MHz"; empty where nobody says."""
    return smi("clocks.sm")


def smi(fields: str) -> str:
    """Return what nvidia-smi says of fields now, empty where it is missing or does not know one."""
    return output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0")


def output_of(*command: str) -> str:
    """Return what a command prints, and nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """Return the model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or sys.platform


def version(package: str) -> str:
    """Return the installed version of a package, empty where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def folder_name(device: str) -> str:
    """Return a device's name as that of a folder.

    >>> folder_name("NVIDIA H200 141GB")
    'nvidia-h200-141gb'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
