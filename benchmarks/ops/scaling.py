"""How ops grow: attention with the length of a sequence and with the batch, a norm with the width.

Along one line all else stays: the number of tokens while the sequence grows, the number of elements while rows do. So a
rate that is flat is one that does not care. On a CPU the sizes are those of a small model.

Read next: `../check.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.ops.attention import sizes
from benchmarks.ops.registration import Shape

LINES = ("fused", "torch", "SDPA flash", "SDPA cuDNN", "F.layer_norm", "Liger")  # providers that are measured


@dataclass(frozen=True)
class Sweep:
    """One op along one of its sizes. variable: the size's name in a shape's dims. what: of the axis in the plot."""

    op: str
    variable: str
    what: str
    shapes: dict[str, tuple[Shape, ...]]


def _lengths(tokens: int, lengths: tuple[int, ...], H: int, D: int) -> tuple[Shape, ...]:
    small = {n: {"B": 1, "T": min(n, 1024), "S": min(n, 1024)} for n in lengths}
    return tuple(Shape(f"S={n}", sizes(tokens // n, n, H, D), small[n]) for n in lengths)


def _batches(batches: tuple[int, ...], S: int, H: int, D: int) -> tuple[Shape, ...]:
    return tuple(Shape(f"B={n}", sizes(n, S, H, D), {"B": 1}) for n in batches)


def _widths(elements: int, widths: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple(Shape(f"C={n}", {"R": elements // n, "C": n}, {"R": 256}) for n in widths)


SWEEPS = (
    Sweep(
        "attention_causal",
        "S",
        "tokens of a sequence",
        {
            "cuda": _lengths(16384, (512, 1024, 2048, 4096, 8192, 16384), 12, 64),
            "cpu": _lengths(2048, (64, 128, 256, 512, 1024, 2048), 4, 32),
        },
    ),
    Sweep(
        "layer_norm",
        "C",
        "width",
        {
            "cuda": _widths(2**25, (128, 256, 768, 2048, 4096, 8192)),
            "cpu": _widths(2**19, (64, 128, 256, 768, 2048)),
        },
    ),
    Sweep(
        "attention_causal",
        "B",
        "sequences",
        {
            "cuda": _batches((1, 2, 4, 8, 16, 32), 1024, 12, 64),
            "cpu": _batches((1, 2, 4, 8, 16), 128, 4, 32),
        },
    ),
)


def shape_of(op: str, name: str, kind: str) -> Shape:
    """Return the sizes of one point."""
    return next(x for s in SWEEPS if s.op == op for x in s.shapes[kind] if x.name == name)
