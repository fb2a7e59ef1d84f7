"""What the device reaches at best, measured in the same run: copying memory, multiplying matrices.

Every figure of an op is also a share of the right one of these, so that a data sheet, a slower clock or a neighbour
decides nothing. Copying: bytes read and bytes written, of buffers far larger than the caches, the best of several ways:
a GPU's copy inside a graph takes its copy engines, which reach two thirds of what a kernel does (an H200, 2026-11-27).
Products: square, at the size of the largest rate; float32 in full precision, not TF32.

Read next: `machine.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.timing import Call, first_line, interleaved

GIB = 2**30
COPY_BYTES = {"cuda": GIB, "cpu": GIB // 4}
MATRIX_SIDES = {
    "cuda": {torch.bfloat16: (4096, 8192), torch.float16: (8192,), torch.float32: (4096,)},
    "cpu": {torch.bfloat16: (512, 1024), torch.float32: (512, 1024, 2048)},
}
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def measure(device: torch.device, *, rounds: int, seconds: float) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield {"copy": ..., "matrix bf16": ..., ...} as it grows, each with `rate` (bytes or operations a second).

    Of several sizes and ways the one with the largest rate is kept: a ceiling is what can be reached.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, dict[str, Any]] = {}

    def keep_best(name: str, call: Call, work: int, what: str, graph: bool = True) -> None:
        taken = interleaved({name: call}, copies=1, device=device, rounds=rounds, seconds=seconds, graph=graph)[name]
        if isinstance(taken, Exception):
            found.setdefault(name, {"rate": None, "what": first_line(taken)})
        elif (rate := work / taken.median) > (found.get(name, {}).get("rate") or 0):
            low, high = taken.quartiles
            spread = (high - low) / taken.median
            found[name] = {"rate": rate, "spread": spread, "what": what, "method": taken.method}

    size = COPY_BYTES[device.type]
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    what = f"{size // 2**20} MiB"
    keep_best("copy", lambda i: target.copy_(source), 2 * size, what)
    if device.type == "cuda":
        keep_best("copy", lambda i: target.copy_(source), 2 * size, what, graph=False)
        keep_best("copy", lambda i: torch.neg(source, out=target), 2 * size, f"{what}, by a kernel")
    yield found
    for dtype, sides in MATRIX_SIDES[device.type].items():
        for side in sides:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            keep_best(f"matrix {SHORT[dtype]}", lambda i, a=a, b=b: a @ b, 2 * side**3, f"{side} x {side} x {side}")
            yield found
