"""What waits for a GPU, found without one: the operations whose results are numbers of the host."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {"nonzero", "_local_scalar_dense", "is_nonzero", "equal", "masked_select", "_unique2"}


class Waits(TorchDispatchMode):
    """Records, while on, which operations a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) in NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
