"""The mark of a backward pass that is written by hand.

Read next: `rms_norm/reference.py`, where it is used first.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch.autograd.function import once_differentiable

Backward = TypeVar("Backward", bound=Callable[..., Any])


def by_hand(backward: Backward) -> Backward:
    """Make a second derivative through `backward` a RuntimeError.

    What the forward pass saved is a constant to autograd, so that a derivative of these formulas would leave out all
    that depends on it: a wrong number without a word.
    """
    return cast(Backward, once_differentiable(backward))
