"""A loss that can be added up over micro-batches and processes without becoming a mean of means.

Read next: `causal_lm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """total: (), the sum of the losses of all targets, in nats, with gradient.
    count: (), how many targets that was.
    extra: (), a regulariser that is added once per optimiser step and has no count; None: there is none.

    The trainer divides the summed totals by the summed counts, over micro-batches and processes. A mean over
    micro-batches of their means is another number whenever the counts differ: masked LM, padding, packed documents.
    """

    total: Tensor
    count: Tensor
    extra: Tensor | None = None
