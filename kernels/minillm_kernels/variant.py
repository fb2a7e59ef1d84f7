"""One way in which a kernel is compiled: what the compile report needs to build it without a GPU.

Every op with a kernel has a function `variants()` in its `fused.py` that yields all that its launchers can ask for:
each entry of the table of launch configurations, with each dtype and each switch that changes the code.

Read next: `compile_report.py`, which builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One specialisation of one Triton kernel.

    op: as in `dispatch.OPS`. name: tells it from the op's others for the same target, as "forward f16 D=64 causal".
    kernel: the function under `triton.jit` or `gluon.jit`.
    signature: parameter -> "*fp16", "*fp32", "*i64", "fp32", "i32", ..., or "constexpr"; a tuple of these for a tuple.
        A tensor descriptor is "tensordesc<fp16[1, 64, 1, 64],LAYOUT>", LAYOUT as Python writes it.
    constants: the value of each constexpr parameter; Triton makes one of every number that is 1, such as a stride.
    aligned: parameters that are divisible by 16: pointers, and strides where the compiler may count on it.
    num_warps, num_stages: of the launch. max_registers: of a thread when a program starts; None: the compiler's choice.
    targets: the devices for which the table of configurations names it: "sm_80", "sm_90", "sm_100", "gfx942".
    matrix_unit: whether its products belong on tensor cores.

    A parameter that takes a tuple has a tuple of types as its signature. `constants` and `aligned` may name an element
    of it by its path of indices, (parameter, element), as Triton does: {(8, 3): 1} for a stride that is 1. Where
    `aligned` has the tuple's own name, all its elements but constexpr ones are.
    """

    op: str
    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[Any, Any]
    aligned: frozenset[Any] = frozenset()
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None
    targets: tuple[str, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")
    matrix_unit: bool = False
