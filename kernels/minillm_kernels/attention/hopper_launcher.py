"""When the kernel of `hopper.py` serves a call of attention, and how it is launched.

MINILLM_HOPPER=1 in the environment asks for it, on a GPU of compute capability 9.0; it is not the default because it
takes 1.14 to 1.30 times as long as the kernel of `forward.py` (an H200, 2026-11-28). It serves the forward pass of
calls in float16 and bfloat16 whose masks are `causal` and `key_stop`, or none, with heads of a width that is a multiple
of 8 up to 128; every other call, and every call on a Triton whose Gluon does not have what the kernel imports, goes on
to the kernel of `forward.py` as if nobody had asked. `obstacle` says in words why.

The two give the same y and lse up to rounding, so that the backward pass does not know which it was.

Read next: `variants.py`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_kernels.attention.arguments import LEAST_SCALE, launched
from minillm_kernels.attention.configs import padded_width
from minillm_kernels.attention.masks import Masks
from minillm_kernels.launching import cdiv

MAX_WIDTH = 128  # of a head: of twice that, o and the scores do not fit a consumer's registers
WIDTHS = (16, 32, 64, 128)  # of a head, after padding to a power of two
ROWS = 64  # queries of a consumer, as the kernel has it
REGISTERS = 168  # of a thread at the start: 3 warpgroups share 65536
_asked = os.environ.get("MINILLM_HOPPER") == "1"


@dataclass(frozen=True)
class Launch:
    """How the kernel is launched. block_n: keys of a tile. stages: places of a ring. ping_pong: turns are taken."""

    block_n: int
    stages: int
    ping_pong: bool


def launch(D: int) -> Launch:
    """Return the launch configuration for heads of width `D`; at 128, 160 of the 227 KiB of shared memory are taken."""
    return Launch(block_n=128, stages=2 if padded_width(D) == MAX_WIDTH else 3, ping_pong=True)


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Ask for the kernel inside the block, as MINILLM_HOPPER=1 does for the whole process."""
    global _asked
    before, _asked = _asked, True
    try:
        yield
    finally:
        _asked = before


def serves(q: Tensor, k: Tensor, v: Tensor, masks: Masks, **terms: Any) -> bool:
    """Return whether the kernel is asked for and can serve a call; arguments as of `obstacle`."""
    return _asked and not obstacle(q, k, v, masks, **terms)


def obstacle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    scale: float = 1.0,
) -> str:
    """Return why the kernel cannot serve a call; nothing when it can."""
    return (
        device_obstacle(q.device)
        or _call_obstacle(q, k, masks, alibi_slopes, bias, softcap, dropout_p, scale)
        or next((f"{name}: {why}" for name, x in (("q", q), ("k", k), ("v", v)) if (why := _layout_obstacle(x))), "")
    )


def device_obstacle(device: torch.device) -> str:
    """Return why the kernel cannot run on a device; nothing when it can."""
    if device.type != "cuda":
        return "needs a GPU"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        return f"needs compute capability 9.0, not {capability[0]}.{capability[1]}"
    return _kernel()[1]


def forward(q: Tensor, k: Tensor, v: Tensor, masks: Masks, scale: float) -> tuple[Tensor, Tensor]:
    """Return y (B, T, H, D) and lse (B, H, T), as `fused.attention_forward` does, of a call without an obstacle."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    (B, T, H, D), (S, Hkv) = q.shape, k.shape[1:3]
    config = launch(D)
    y = torch.empty((B, T, H, D), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)

    def described(x: Tensor, rows: int) -> Any:
        return TensorDescriptor(x, list(x.shape), _strides(x), *tile(rows, D))

    with torch.cuda.device_of(q):
        launched(_kernel()[0]._attention_forward_hopper_kernel, cdiv(T, 2 * ROWS) * B * H)(
            described(q, ROWS), described(k, config.block_n), described(v, config.block_n), described(y, ROWS), lse,
            None if masks.key_stop is None else masks.key_stop.contiguous(), float(scale), T, S, H, H // Hkv,
            BLOCK_N=config.block_n, BLOCK_D=padded_width(D), CAUSAL=_is_causal(masks, T, S), STAGES=config.stages,
            PING_PONG=config.ping_pong, num_warps=4, maxnreg=REGISTERS,
        )  # fmt: skip
    return y, lse


def tile(rows: int, D: int) -> tuple[list[int], Any]:
    """Return the shape of a tile of rows of one head, and how shared memory holds it: as wgmma reads 16-bit numbers."""
    from triton.experimental.gluon import language as gl

    shape = [1, rows, 1, padded_width(D)]
    return shape, gl.NVMMASharedLayout.get_default_for(shape, gl.float16)


@functools.cache
def _kernel() -> tuple[Any, str]:
    """Return the module with the kernel, or why there is none."""
    try:
        from minillm_kernels.attention import hopper
    except Exception as error:  # Gluon is experimental: whatever another version of it does not have ends here
        return None, f"this Triton's Gluon does not have what the kernel needs ({type(error).__name__}: {error})"
    return hopper, ""


def _call_obstacle(
    q: Tensor,
    k: Tensor,
    masks: Masks,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    scale: float,
) -> str:
    (B, T, H, D), S = q.shape, k.shape[1]
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, not {str(q.dtype)[6:]}"
    if D > MAX_WIDTH or D % 8:
        return f"needs heads of a width that is a multiple of 8 up to {MAX_WIDTH}, not {D}"
    if not (B and T and H and S):
        return "needs at least one query and one key"
    others = (masks.key_start, masks.segments, masks.cu_seqlens_q, masks.prefix)
    left, right = masks.window
    bounded = left is not None and left < T + S or right is not None and right < T + S
    if any(mask is not None for mask in others) or (bounded and not _is_causal(masks, T, S)):
        return "takes no mask but causal and key_stop"
    if alibi_slopes is not None or bias is not None or softcap is not None or dropout_p > 0:
        return "takes neither alibi nor a bias, a softcap or dropout"
    if not LEAST_SCALE <= scale < math.inf:
        return f"needs a scale of {LEAST_SCALE:.2g} or more, not {scale}"
    return ""


def _is_causal(masks: Masks, T: int, S: int) -> bool:
    """Return whether keys after a query are hidden, and none before it."""
    left, right = masks.window
    return (masks.causal or right == 0) and (left is None or left >= T + S)


def _layout_obstacle(x: Tensor) -> str:
    """Return why TMA cannot copy tiles of x (B, T, H, D)."""
    if x.stride(-1) != 1:
        return f"needs neighbouring columns side by side, got strides {x.stride()}"
    if x.data_ptr() % 16:
        return "needs to start at a multiple of 16 bytes"
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size > 1 and (stride * x.itemsize % 16 or not 0 < stride * x.itemsize < 2**40):
            return f"needs strides that are multiples of 16 bytes, above 0 and below 2**40, got {x.stride()}"
    return ""


def _strides(x: Tensor) -> list[int]:
    """Return the strides of x for TMA, which wants a legal one along an axis of size 1 too, where none matters."""
    axes = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    return [stride if size > 1 else x.shape[-1] for size, stride in axes] + [1]
