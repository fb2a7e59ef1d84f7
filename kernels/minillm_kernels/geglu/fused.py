r"""geglu in Triton: gelu's two functions in the gated kernels of `../elementwise_kernels.py`.

Equations: `reference.py`.

Read next: `../elementwise_kernels.py`, `../elementwise.py`, then `../rotary/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from minillm_kernels import elementwise
from minillm_kernels.geglu import reference
from minillm_kernels.gelu.fused import FUNCTIONS
from minillm_kernels.variant import Variant

_op = elementwise.register_gated("geglu", FUNCTIONS, reference.geglu)


def geglu(gate: Tensor, up: Tensor, approximate: str, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return y in the dtype of `gate`; arguments as in the public function."""
    return _op(gate, up, approximate, dropout_p, seed)


def variants() -> Iterator[Variant]:
    """Yield every way in which the kernels are compiled."""
    return elementwise.gated_variants("geglu", FUNCTIONS)
