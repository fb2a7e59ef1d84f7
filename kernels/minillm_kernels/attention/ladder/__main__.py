"""Check every rung of the ladder by one oracle and, on a GPU, time it: python -m minillm_kernels.attention.ladder

The oracle is the rule of all kernels here: no further from the float64 truth than twice the plain maths in the same
dtype, plus a rounding floor. A rung that fails it is not timed.

Read next: `naive.py`.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

import minillm_kernels as mk
from minillm_kernels import dispatch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined, in the import below,
    dispatch.INTERPRETED = True  # and the package read it before this file had a say

from minillm_kernels.attention.ladder.rungs import RUNGS, Rung


def inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v with gradient, and an upstream gradient."""
    source = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(B, T, H, D, generator=source).to(device, dtype) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], dy


def error(rung: Rung, tensors: list[Tensor], dy: Tensor) -> float:
    """Return the rung's largest error as a share of what is allowed: 1 or less is right."""

    def results(function: Rung, tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = function.attention(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)] if function.has_gradient else [y.detach()]

    plain = Rung("plain", lambda q, k, v: mk.attention(q, k, v, causal=True), rung.has_gradient)
    with mk.backend("reference"):
        truth = results(plain, [x.double() for x in tensors], dy.double())
        low = results(plain, tensors, dy)
    shares = []
    for ours, t, p in zip(results(rung, tensors, dy), truth, low, strict=True):
        allowed = 2 * (p - t).abs().max() + 4 * torch.finfo(dy.dtype).eps * t.abs().max()
        shares.append(float((ours - t).abs().max() / allowed))
    return max(shares)


def milliseconds(rung: Rung, tensors: list[Tensor], dy: Tensor) -> float:
    """Return the median time of a forward pass, with a backward pass where the rung has one."""
    from triton.testing import do_bench

    def once() -> None:
        y = rung.attention(*tensors)
        if rung.has_gradient:
            torch.autograd.grad(y, tensors, dy)

    return float(do_bench(once, return_mode="median"))  # pyright: ignore[reportArgumentType]


def main() -> int:
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
    small, dy = inputs(1, 37, 2, 24, dtype, device)
    B, T, H, D = 4, 2048, 8, 64
    large, large_dy = inputs(B, T, H, D, torch.bfloat16, device) if on_gpu else ([], dy)
    print("error: the largest, as a share of what is allowed" + (f"; time: B={B} T={T} H={H} D={D}" if on_gpu else ""))
    wrong = 0
    for rung in RUNGS:
        share = error(rung, small, dy)
        wrong += not share <= 1
        line = f"{rung.name:<10} error {share:.2f}"
        if on_gpu and share <= 1 and T * D <= rung.largest_tile:
            operations = 2 * B * H * T * T * D * (3.5 if rung.has_gradient else 1)  # half of the pairs are hidden
            time = milliseconds(rung, large, large_dy)
            line += f"   {time:8.3f} ms {operations / time / 1e9:7.1f} TFLOP/s"
            line += "   forward and backward" if rung.has_gradient else ""
        print(line)
    if not on_gpu:
        print("checked in Triton's interpreter; timing needs a GPU")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
