"""attention, causal and full, beside every backend of PyTorch's own, FlexAttention and the kernel for Hopper GPUs.

Operations: two products of B H T S D multiply-adds forward, five backward (the scores once more, dv, dp, dq, dk);
causal needs half of the pairs, as all published tables count. Bytes: q, k, v and y forward; backward those and dy,
read, and dq, dk, dv, written.

Read next: `losses.py`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import minillm_kernels as mk
import torch
import torch.nn.functional as F
from minillm_kernels import dispatch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ops.registration import Cost, Dims, OpBenchmark, Outputs, Run, Shape, Source, Tensors, Unavailable


def sizes(B: int, T: int, H: int, D: int, *, Hkv: int | None = None, S: int | None = None) -> dict[str, int]:
    """Return the sizes of a case; as many heads of keys as of queries, and as many keys, unless they are given."""
    return {"B": B, "T": T, "S": S or T, "H": H, "Hkv": Hkv or H, "D": D}


CHECK = {"B": 1, "T": 1024, "S": 1024}
CAUSAL_SHAPES = {
    "cuda": (
        Shape("GPT-2", sizes(16, 1024, 12, 64), {"B": 4}),
        Shape("D=64, 4k", sizes(4, 4096, 16, 64), CHECK),
        Shape("D=128, 4k", sizes(4, 4096, 16, 128), CHECK),
        Shape("small", sizes(32, 512, 6, 64), {"B": 4}),
        Shape("D=64, 16k", sizes(1, 16384, 16, 64), CHECK),
        Shape("D=128, 2k, grouped", sizes(4, 2048, 32, 128, Hkv=8), CHECK),
        Shape("D=64, 2k", sizes(8, 2048, 12, 64), CHECK),
        Shape("D=128, 16k", sizes(1, 16384, 16, 128), CHECK),
    ),
    "cpu": (Shape("tiny", sizes(8, 128, 4, 32)), Shape("GPT-2", sizes(1, 512, 12, 64))),
}
FULL_SHAPES = {
    "cuda": (
        Shape("BERT-base", sizes(32, 512, 12, 64), {"B": 4}),
        Shape("D=128, 4k", sizes(4, 4096, 16, 128), CHECK),
        Shape("D=64, 4k", sizes(4, 4096, 16, 64), CHECK),
        Shape("D=128, 16k", sizes(1, 16384, 16, 128), CHECK),
    ),
    "cpu": (Shape("tiny", sizes(8, 128, 4, 32)), Shape("BERT-base", sizes(1, 512, 12, 64))),
}
DECODE_SHAPES = {
    "cuda": (
        Shape("S=1k", sizes(16, 1, 12, 64, S=1024)),
        Shape("S=8k, grouped", sizes(16, 1, 32, 128, Hkv=8, S=8192)),
    ),
    "cpu": (Shape("S=1k", sizes(1, 1, 12, 64, S=1024)),),
}


def _inputs(dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    B, T, S, H, Hkv, D = (dims[n] for n in ("B", "T", "S", "H", "Hkv", "D"))
    return {
        "q": source.normal(B, T, H, D, dtype=dtype),
        "k": source.normal(B, S, Hkv, D, dtype=dtype),
        "v": source.normal(B, S, Hkv, D, dtype=dtype),
    }


def _cost(causal: bool, dims: Dims, itemsize: int) -> Cost:
    B, T, S, H, Hkv, D = (dims[n] for n in ("B", "T", "S", "H", "Hkv", "D"))
    queries, keys = B * T * H * D * itemsize, B * S * Hkv * D * itemsize
    product = 2 * B * H * T * S * D // (2 if causal else 1)
    return Cost(
        forward_bytes=2 * queries + 2 * keys,
        forward_flops=2 * product,
        backward_bytes=4 * queries + 4 * keys,  # q, y, dy, dq; k, v, dk, dv
        backward_flops=5 * product,
        unit="matrix",
    )


def _sdpa(backend: str, causal: bool, dims: Dims, device: torch.device) -> Run:
    """Return PyTorch's attention with one backend and no other; what it cannot do is a RuntimeError when called."""
    chosen = getattr(SDPBackend, backend, None)
    if chosen is None:
        raise Unavailable(f"this PyTorch has no {backend}")
    if device.type != "cuda" and backend not in ("MATH", "FLASH_ATTENTION"):
        raise Unavailable("needs a GPU")
    grouped = dims["H"] != dims["Hkv"]

    def run(t: Tensors) -> Outputs:
        q, k, v = (t[n].transpose(1, 2) for n in "qkv")  # (B, H, T, D)
        with sdpa_kernel([chosen]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns once for each backend that it may not take
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        return y.transpose(1, 2)

    return run


def _flex(causal: bool, dims: Dims, device: torch.device) -> Run:
    if device.type != "cuda":
        raise Unavailable("needs a GPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def shown(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    T, S = dims["T"], dims["S"]
    mask = create_block_mask(shown, None, None, T, S, device=str(device)) if causal else None
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped = dims["H"] != dims["Hkv"]

    def run(t: Tensors) -> Outputs:
        q, k, v = (t[n].transpose(1, 2) for n in "qkv")  # (B, H, T, D)
        y = compiled(q, k, v, block_mask=mask, enable_gqa=grouped)
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    return run


def _hopper(causal: bool, dims: Dims, device: torch.device) -> Run:
    """Return this project's other forward kernel, which has to be asked for, and the backward pass of the usual one."""
    if not dispatch.HAS_TRITON:
        raise Unavailable("triton is not installed" if device.type == "cuda" else "needs a GPU")
    from minillm_kernels.attention import hopper_launcher
    from minillm_kernels.attention.masks import Masks

    if reason := hopper_launcher.device_obstacle(device):
        raise Unavailable(reason)
    masks = Masks(causal=causal)

    def run(t: Tensors) -> Outputs:
        q, k, v = (t[n] for n in "qkv")
        if reason := hopper_launcher.obstacle(q, k, v, masks):
            raise Unavailable(reason)
        with mk.backend("fused"), hopper_launcher.asking():
            return mk.attention(q, k, v, causal=causal)

    return run


# The last needs most memory: what runs out of it should be that.
SDPA = {"FLASH_ATTENTION": "flash", "CUDNN_ATTENTION": "cuDNN", "EFFICIENT_ATTENTION": "efficient", "MATH": "math"}


HOPPER = "fused (Hopper)"


def _benchmark(name: str, causal: bool, shapes: dict[str, tuple[Shape, ...]], decode: bool = False) -> OpBenchmark:
    peers: dict[str, Callable[[Dims, torch.device], Run]] = {}
    if not decode:
        peers[HOPPER] = functools.partial(_hopper, causal)
        peers["FlexAttention"] = functools.partial(_flex, causal)
    peers |= {f"SDPA {short}": functools.partial(_sdpa, backend, causal) for backend, short in SDPA.items()}
    return OpBenchmark(
        name=name,
        inputs=_inputs,
        call=lambda t, dims: mk.attention(t["q"], t["k"], t["v"], causal=causal),
        cost=functools.partial(_cost, causal),
        shapes=shapes,
        peers=peers,
        directions=("forward",) if decode else ("forward", "forward+backward"),
    )


ATTENTION = (
    _benchmark("attention_causal", True, CAUSAL_SHAPES),
    _benchmark("attention_full", False, FULL_SHAPES),
    _benchmark("attention_decode", False, DECODE_SHAPES, decode=True),  # one query: causal hides nothing
)
