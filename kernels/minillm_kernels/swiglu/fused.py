r"""swiglu in Triton: SiLU and its gradient; the kernels are in `../elementwise_kernels.py`.

Equations: `reference.py`.

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../geglu/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl  # noqa: F401 (the interpreter wants it in sight of every kernel)
from torch import Tensor

from minillm_kernels import elementwise, elementwise_kernels
from minillm_kernels.exponential import LOG2E
from minillm_kernels.swiglu import reference
from minillm_kernels.variant import Variant


@triton.jit
def silu(gate):
    sigma, _ = elementwise_kernels.logistic(gate * -LOG2E)  # pyright: ignore[reportGeneralTypeIssues]
    return gate * sigma  # gate * (1)


@triton.jit
def silu_gradient(gate, dy):
    sigma, rest = elementwise_kernels.logistic(gate * -LOG2E)  # pyright: ignore[reportGeneralTypeIssues]
    return dy * sigma * (1 + gate * rest)  # (4), (5)


FUNCTIONS = {"": elementwise.Function(silu, silu_gradient)}
_op = elementwise.register_gated(
    "swiglu", FUNCTIONS, lambda gate, up, form, p, seed: reference.swiglu(gate, up, p, seed)
)


def swiglu(gate: Tensor, up: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return _op(gate, up, "", dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.gated_variants("swiglu", FUNCTIONS)
