"""The marks of a forward and a backward pass that are written by hand.

Read next: `rms_norm/reference.py`, where they are used first.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.autograd.function import once_differentiable

from minillm_kernels.precision import without_autocast

Forward = TypeVar("Forward", bound=Callable[..., Any])
Backward = TypeVar("Backward", bound=Callable[..., Any])


def own_result(forward: Forward) -> Forward:
    """Make what `forward` returns a tensor of its own to torch.compile, and run it `without_autocast`.

    A Function may return what an operation in place handed on, or a conversion to the dtype that a tensor had already:
    PyTorch 2.11's compiler then makes its gradients 0, without a word. A view, which moves no byte, is a tensor of its
    own.
    """

    forward = without_autocast(forward)

    @wraps(forward)
    def call(ctx: Any, *inputs: Any) -> Any:
        result = forward(ctx, *inputs)
        if not torch.compiler.is_compiling():
            return result
        return tuple(y.view_as(y) for y in result) if isinstance(result, tuple) else result.view_as(result)

    return cast(Forward, call)


def by_hand(backward: Backward) -> Backward:
    """Raise RuntimeError where autograd would differentiate `backward` (create_graph=True); run it `without_autocast`.

    What the forward pass saved is a constant to autograd, so that a derivative of these formulas would leave out all
    that depends on it: a wrong number without a word. once_differentiable alone is not enough: the node that raises its
    error is not on the way to the inputs, so that torch.autograd.grad leaves out the op and adds up what else there is.
    """
    once = once_differentiable(without_autocast(backward))

    @wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "a backward pass by hand has no second derivative; leave out create_graph=True, or take PyTorch's own "
                "function in the place of this op"
            )
        return once(ctx, *grads)

    return cast(Backward, call)
