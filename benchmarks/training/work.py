"""How many bytes and operations a step is made of, op by op as PyTorch is asked for them.

A step written as single ops reads and writes its activations many times; fused ops do it once. Counted, that predicts
what a rung of the ladder gains before it is timed:

    seconds = bytes / copy bandwidth + operations / product rate                                     (1)

bytes: what all ops that are no products read and write; operations: those of the products, by the formulas of
torch.utils.flop_counter and of this project's own ops. As if each op ran at its ceiling, one after the other: launches,
and what the caches keep from one op to the next, are left out.

Read next: `section.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

UNTOUCHED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh")


@dataclass
class Work:
    """num_bytes: read and written by ops that are no products. flops: of the products."""

    num_bytes: int = 0
    flops: int = 0


class Counter(TorchDispatchMode):
    """Adds up the work of every op that is called inside its block, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.work.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif not func.is_view and packet.__name__ not in UNTOUCHED:
            self.work.num_bytes += bytes_moved(func, args, kwargs, result)
        return result


def bytes_moved(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the bytes of what an op reads, of what it writes in place, and of what it returns anew."""
    read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    written: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name, args[number] if number < len(args) else None)
            written += [t for t in tree_leaves(given) if isinstance(t, Tensor)]
    known = {id(t) for t in read}
    new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and id(t) not in known]
    return total_bytes({id(t): t for t in read}.values()) + total_bytes(written) + total_bytes(new)


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the elements; one that is broadcast counts what lies in memory.

    >>> import torch
    >>> total_bytes([torch.zeros(1, 3).expand(5, 3)])
    12
    """
    return sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)


def counted(call: Callable[[], Any]) -> Work:
    """Return the work of one call."""
    with Counter() as counter:
        call()
    return counter.work
