"""THE one decision: which backend computes an op, and why.

    fused      a Triton kernel; the default on a GPU that it supports
    torch      the fastest composition of PyTorch's own ops; the default elsewhere
    reference  the maths by hand, forward and closed-form backward; for reading and as the oracle

The state is module globals: a ContextVar or a logger call in traced code would break torch.compile's full graph.

Read next: `rms_norm/reference.py`; `interpreted.py` for kernels on a CPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.autograd import forward_ad

Backend = Literal["fused", "torch", "reference"]

OPS = (  # in reading order; attention_weights goes by attention's decision
    "rms_norm",
    "layer_norm",
    "relu",
    "gelu",
    "relu2",
    "swiglu",
    "geglu",
    "rotary",
    "dropout",
    "embedding",
    "attention",
    "cross_entropy",
    "linear_cross_entropy",
)
FUSED_OPS = frozenset(OPS)  # ops that have a Triton kernel; a new op comes without one at first
HAS_TRITON = importlib.util.find_spec("triton") is not None  # without importing it: that takes a second
# Triton too reads it once, when a kernel is defined
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

_asked: dict[str, Backend] = {}  # op -> what was asked for; replaced whole and never changed, as traced code guards it


@dataclass(frozen=True)
class Decision:
    """The backend of one op on one device, and the reason in words."""

    op: str
    backend: Backend
    reason: str


def decide(op: str, device: torch.device | str) -> Decision:
    """Return the backend that `op` uses on `device` and why, without computing anything.

    Raises:
        ValueError: `fused` was asked for, the op has a kernel, and the kernel cannot run on `device`.

    >>> decide("relu", "cpu")
    Decision(op='relu', backend='torch', reason='the default on cpu')
    """
    return Decision(op, *_decide(op, torch.device(device).type))


def choose(op: str, tensor: torch.Tensor, obstacle: str = "") -> Backend:
    """Return the backend for `op` on the device of `tensor`; called by every public op, also in traced code.

    Args:
        op: its name in `OPS`.
        tensor: the op's first argument; no kernel takes float64.
        obstacle: why the op's kernel cannot serve this call, in words; empty: it can.
    Raises:
        ValueError: `fused` was asked for, and the op's kernel cannot run on this device or serve this call.
    """
    if tensor.dtype == torch.float64:
        obstacle = "float64 has no kernel"
    elif in_forward_mode():
        obstacle = "forward-mode derivatives have no kernel"
    return _decide(op, tensor.device.type, obstacle)[0]


def _decide(op: str, kind: str, obstacle: str = "") -> tuple[Backend, str]:
    """Return the backend and the reason: a tuple, as this runs at every call and a dataclass doubles its 0.7 us."""
    asked = _asked.get(op)
    if asked is not None and asked != "fused":
        return asked, "asked for"
    if op not in FUSED_OPS:
        return "torch", "no Triton kernel yet"
    obstacle = _obstacle(kind) or obstacle
    if asked == "fused":
        if obstacle:
            raise ValueError(f"backend 'fused' was asked for, but {op} on {kind}: {obstacle}; ask for 'torch'")
        return "fused", "asked for"
    if kind == "cuda" and not obstacle:
        return "fused", "the default on a GPU"
    return "torch", obstacle if kind == "cuda" else f"the default on {kind}"


def _obstacle(kind: str) -> str:
    """Return why no Triton kernel can run on a kind of device; nothing when one can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if kind != "cuda" and not INTERPRETED:
        return "Triton kernels run on a GPU, elsewhere only interpreted, with TRITON_INTERPRET=1 set at the start"
    return ""


def in_forward_mode() -> bool:
    """Return whether forward-mode derivatives are taken here, as by torch.func.jvp.

    An operator of torch.library hands on none, and says nothing: its result counts as a constant.
    """
    return forward_ad._current_level >= 0  # PyTorch asks its own functions in the same way


def launches(tensor: torch.Tensor) -> bool:
    """Return whether an operator launches its kernel for a tensor: on a GPU, or interpreted.

    Elsewhere it computes by its reference: torch.library's operators must work on every device.
    """
    if INTERPRETED and not tensor.is_cuda:
        from minillm_kernels import interpreted  # imports Triton

        interpreted.install()
    return tensor.is_cuda or INTERPRETED


@contextmanager
def backend(name: Backend, *ops: str) -> Iterator[None]:
    """Ask for one backend inside the block, for the ops that are named or for all; one without it takes `torch`.

    Blocks may stand in one another: for each op the innermost that names it counts. `fused` on a device on which a
    kernel cannot run is a ValueError when the op is called.

    >>> import torch, minillm_kernels as mk
    >>> with mk.backend("reference"):
    ...     mk.relu2(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    >>> with mk.backend("reference", "rms_norm", "layer_norm"):
    ...     [d.op for d in mk.explain_dispatch("cpu") if d.backend == "reference"]
    ['rms_norm', 'layer_norm']
    """
    global _asked
    if name not in get_args(Backend):
        raise ValueError(f"backend is one of {', '.join(get_args(Backend))}, got {name!r}")
    if unknown := [op for op in ops if op not in OPS]:
        raise ValueError(f"backend takes the ops {', '.join(OPS)}, got {unknown[0]!r}")
    chosen: dict[str, Backend] = {op: name for op in ops or OPS}
    before, _asked = _asked, _asked | chosen
    try:
        yield
    finally:
        _asked = before


def explain_dispatch(device: torch.device | str = "cpu") -> list[Decision]:
    """Return the decision of every op on `device`, in reading order."""
    return [decide(op, device) for op in OPS]
