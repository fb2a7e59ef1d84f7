"""The parts of a block: linear layer, norm, rotary tables, self-attention, feed-forward layer, and the two blocks.

Weights are float32; activations come in the compute dtype, and each layer casts its weight to it. The maths is in
`minillm_kernels`, whose ops choose their own backend. Sizes of activations are read from tensors, never from a config:

    B rows   T tokens   S keys   C width of the residual stream   H query heads   Hkv key heads   D width of a head

Read next: `transformer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from einops import rearrange
from minillm_kernels import (
    attention,
    attention_weights,
    embedding,
    geglu,
    gelu,
    layer_norm,
    relu,
    relu2,
    rms_norm,
    rotary,
    swiglu,
)
from minillm_kernels.dispatch import decide
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.model.cache import Cache
from minillm.model.config import GATED, ModelConfig

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: its multiples modulo 2^64 are far apart


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share beside the activations.

    positions: (B, T) int64; None: 0 .. T-1 in every row.
    key_start, key_stop: (B,) int64, the real keys of each row; None: all of them.
    segments: (B, T) int64, the document of each token; None: one document a row.
    cache: keys and values of earlier tokens; None: there are none.
    seed: () int64, of the dropout of this pass; None: nothing is dropped.
    """

    positions: Tensor | None = None
    key_start: Tensor | None = None
    key_stop: Tensor | None = None
    segments: Tensor | None = None
    cache: Cache | None = None
    seed: Tensor | None = None

    def dropout(self, p: float, site: int) -> tuple[float, Tensor | None]:
        """Return the dropout probability and seed for one place in the model; (0, None) where nothing is dropped.

        Every place has a number of its own, so no two of them drop the same pattern. Philox mixes the seeds: it is
        enough that they differ.
        """
        if p == 0.0 or self.seed is None:
            return 0.0, None
        offset = (site * GOLDEN + 2**63) % 2**64 - 2**63  # as an int64: torch takes no larger number
        return p, self.seed + offset  # wraps around, as int64 does


def attention_site(layer: int) -> int:
    """Return the number of the place where attention weights of a layer are dropped; 0 is the embedding's."""
    return 3 * layer + 1


def attention_output_site(layer: int) -> int:
    """Return the number of the place where the output of a layer's attention is dropped."""
    return 3 * layer + 2


def mlp_output_site(layer: int) -> int:
    """Return the number of the place where the output of a layer's feed-forward part is dropped."""
    return 3 * layer + 3


class Linear(nn.Linear):
    """y = x W^T + b, in the dtype of x: float32 weights are cast where they are used."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out) for input (..., in)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


def is_plain(layer: nn.Module) -> TypeGuard[Linear]:
    """Return whether a layer does what `Linear` does: no adapter stands in its place, and no hook of its own waits."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is Linear and not any(hooks) and "forward" not in vars(layer)


def project(x: Tensor, head_width: int, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return layer(x) in heads for each of some layers, (B, T, out/D, D) for x (B, T, in): in training by one product.

    The gradient of x comes from one product too, without two additions: 92 us a layer of 65,536 tokens of width 768 (an
    H200, bfloat16, 2026-11-27). The copy of the weights side by side is the cast to the compute dtype; where none is
    due each layer is asked for itself, and so without gradients, as in generation, where a step has few tokens and
    reads little but weights.
    """
    plain = [layer for layer in layers if is_plain(layer) and layer.weight.dtype != x.dtype]
    biases = [layer.bias.to(x.dtype) for layer in plain if layer.bias is not None]
    if len(plain) < len(layers) or len(biases) not in (0, len(layers)) or not torch.is_grad_enabled():
        return tuple(layer(x).unflatten(-1, (-1, head_width)) for layer in layers)
    weight = torch.cat([layer.weight.to(x.dtype) for layer in plain])
    y = F.linear(x, weight, torch.cat(biases) if biases else None)
    return y.unflatten(-1, (-1, head_width)).split([layer.out_features // head_width for layer in plain], dim=2)


class Embedding(nn.Module):
    """A table of vectors, looked up by number."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))  # filled by init.py

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (..., C) for numbers (...) int64."""
        return embedding(numbers, self.weight)


class Norm(nn.Module):
    """Layer norm or RMS norm with a learned gain, alone or right after the addition to the residual stream."""

    op: Callable[..., Any]

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x, (..., C)."""
        return self.op(x, self.weight, self.bias, eps=self.eps)

    def add(self, x: Tensor, update: Tensor | None, dropout_p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of x + dropout(update) and that sum, in one op; without an update x is the sum."""
        if update is None:
            return self(x), x
        return self.op(update, self.weight, self.bias, eps=self.eps, residual=x, dropout_p=dropout_p, seed=seed)


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias."""

    op = staticmethod(layer_norm)


class RMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight."""

    op = staticmethod(rms_norm)


class NoNorm(nn.Module):
    """Stands where a norm was left out: after an embedding that is normed already."""

    def add(self, x: Tensor, update: Tensor | None, dropout_p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x twice: as it is read and as the stream."""
        assert update is None  # there is none before the first sub-layer
        return x, x


def make_norm(config: ModelConfig) -> Norm:
    """Return a norm over the residual stream; only layer norms have biases."""
    if config.norm == "rms_norm":
        return RMSNorm(config.width, config.norm_eps, bias=False)
    return LayerNorm(config.width, config.norm_eps, bias=config.bias)


def rotary_tables(length: int, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angle of each position and column pair.

        angle[p, i] = p * theta^(-2 i / width),     i = 0 .. width/2 - 1

    Args:
        length: number of positions, P.
        width: of a head, D, even.
        theta: base; the longest wavelength is about 2 pi * theta positions.
    Returns:
        cos, sin: (P, D/2) float32, computed in float64.

    Source: Su et al. (2021), arXiv:2104.09864.

    >>> cos, sin = rotary_tables(2, 4, 100.0)
    >>> sin
    tensor([[0.0000, 0.0000],
            [0.8415, 0.0998]])
    """
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (D/2,)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)  # (P, D/2)
    return angle.cos().float(), angle.sin().float()


class Rotary(nn.Module):
    """Rotary tables; layers with the same base share one."""

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, width: int, theta: float) -> None:
        super().__init__()
        cos, sin = rotary_tables(length, width, theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return q and k turned by their positions."""
        return rotary(q, k, self.cos, self.sin, positions=positions)


def alibi_slopes(num_heads: int) -> Tensor:
    """Return the slope of each head's linear penalty on distance, (H,) float32.

        slope_h = 2^(-8 (h + 1) / H) for H a power of two; else those of the next lower power of two, then every other
        slope of the next higher one

    Source: Press et al. (2021), arXiv:2108.12409, and the authors' code for other numbers of heads.

    >>> alibi_slopes(3)
    tensor([0.0625, 0.0039, 0.2500])
    """

    def powers(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / count) for h in range(count)]

    below = 2 ** int(math.log2(num_heads))
    return torch.tensor((powers(below) + powers(2 * below)[0::2])[:num_heads])


@dataclass(frozen=True)
class Seen:
    """What the queries of a layer look at.

    k, v: keys and values (B, S, Hkv, D).
    masks: which of them each query sees, as arguments of `minillm_kernels.attention`.
    """

    k: Tensor
    v: Tensor
    masks: dict[str, Any]


class Source(nn.Module):
    """Where the keys and values of a layer come from: its own tokens, behind those of the cache."""

    slopes: Tensor | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.causal = config.kind == "decoder"
        self.window = window_sides(config, layer)
        slopes = alibi_slopes(config.num_heads) if config.position == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, k: Tensor, v: Tensor, now: Pass) -> Seen:
        """Return what is seen, given keys and values of the tokens of this pass (B, T, Hkv, D)."""
        if now.cache is not None:
            k, v = now.cache.append(self.layer, k, v)  # (B, S, Hkv, D): the earlier ones, then these
        masks = {
            "causal": self.causal,
            "window": self.window,
            "key_start": now.key_start,
            "key_stop": now.key_stop,
            "segments": now.segments,
            "alibi_slopes": self.slopes,
        }
        return Seen(k, v, masks)


class Attention(nn.Module):
    """Self-attention of one layer.

    y = output(softmax(q k^T / sqrt(D) + what the mask says) v),   q, k, v linear in x
    """

    def __init__(self, config: ModelConfig, layer: int, rotary: Rotary | None) -> None:
        super().__init__()
        C, D, query, key = config.width, config.head_dim, config.num_heads, config.kv_heads
        self.layer, self.head_width = layer, D
        self.q = Linear(C, query * D, bias=config.bias)
        self.k = Linear(C, key * D, bias=config.bias)
        self.v = Linear(C, key * D, bias=config.bias)
        self.output = Linear(query * D, C, bias=config.bias)
        self.q_norm = RMSNorm(D, config.norm_eps, bias=False) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.norm_eps, bias=False) if config.qk_norm else None
        self.rotary = rotary
        self.source = Source(config, layer)
        self.softcap = config.attention_softcap
        self.dropout_p = config.attention_dropout

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        q, seen = self.queries_and_seen(x, now)
        dropout_p, seed = now.dropout(self.dropout_p, attention_site(self.layer))
        y = attention(
            q, seen.k, seen.v, **seen.masks, softcap=self.softcap, dropout_p=dropout_p, seed=seed
        )  # (B, T, H, D)
        return self.output(rearrange(y, "B T H D -> B T (H D)"))

    def queries_and_seen(self, x: Tensor, now: Pass) -> tuple[Tensor, Seen]:
        """Return the queries (B, T, H, D) of x (B, T, C), and what they look at."""
        if self.rotary is None and self.q_norm is None:
            q, k, v = project(x, self.head_width, self.q, self.k, self.v)
        else:  # v, kept for the backward pass, would keep alive the q and k beside it that nobody needs any more
            q, k, v = (rearrange(f(x), "B T (H D) -> B T H D", D=self.head_width) for f in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, k, now.positions)
        return q, self.source(k, v, now)

    def weights(self, x: Tensor, now: Pass) -> Tensor:
        """Return the weights (B, H, T, S) that `forward` gives the values, before dropout, and need not hold itself."""
        q, seen = self.queries_and_seen(x, now)
        return attention_weights(q, seen.k, **seen.masks, softcap=self.softcap)


def window_sides(config: ModelConfig, layer: int) -> tuple[int | None, int | None]:
    """Return how far a layer's queries see to the left and to the right, in tokens beside their own; None: all the way.

    >>> window_sides(ModelConfig(window=128, global_every=0), layer=0)
    (127, 0)
    >>> window_sides(ModelConfig(kind="encoder", window=128, global_every=0), layer=0)
    (64, 64)
    """
    window = config.window_of(layer)
    if window is None:
        return None, None
    return (window - 1, 0) if config.kind == "decoder" else (window // 2, window // 2)


def activate(name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the non-linearity of that name of x + bias, (..., C) for x (..., C)."""
    match name:
        case "relu":
            return relu(x, bias)
        case "gelu":
            return gelu(x, bias)
        case "gelu_tanh":
            return gelu(x, bias, approximate="tanh")
        case "relu2":
            return relu2(x, bias)
    raise ValueError(f"activation must be relu, gelu, gelu_tanh or relu2, got {name!r}")


def activate_after(linear: nn.Module, name: str, x: Tensor) -> Tensor:
    """Return the non-linearity of that name of linear(x); with the bias in the same op where the layer is a plain one.

    In one op the backward pass does not read the gradient once more to sum it for the bias. That is done where a kernel
    computes it: without one the bias costs nothing in the matrix product. Whatever stands between the two, an adapter
    in the place of `linear` or a hook on it, gets what `linear` returns.
    """
    op = "gelu" if name == "gelu_tanh" else name
    if is_plain(linear) and linear.bias is not None and decide(op, x.device).backend == "fused":
        return activate(name, F.linear(x, linear.weight.to(x.dtype)), linear.bias)
    return activate(name, linear(x))


class FeedForward(nn.Module):
    """y = down(f(up(x))), each token by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.width, config.hidden, bias=config.bias)
        self.down = Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        return self.down(activate_after(self.up, self.activation, x))


class GatedFeedForward(nn.Module):
    """y = down(f(gate(x)) * up(x)), f = SiLU (SwiGLU) or GELU (GeGLU). Shazeer (2020), arXiv:2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.op = swiglu if config.activation == "swiglu" else geglu
        self.gate = Linear(config.width, config.hidden, bias=config.bias)
        self.up = Linear(config.width, config.hidden, bias=config.bias)
        self.down = Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        return self.down(self.op(self.gate(x), self.up(x)))


class PreNormBlock(nn.Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x)).

    Each addition is computed together with the norm that follows it, which for the block's last addition is in the next
    block. So a block takes and returns two tensors: the stream x, and the update that is still to be added to it.
    """

    def __init__(self, config: ModelConfig, layer: int, rotary: Rotary | None) -> None:
        super().__init__()
        self.layer, self.dropout_p = layer, config.dropout
        normed_before = layer == 0 and config.embedding_norm
        self.attention_norm = NoNorm() if normed_before else make_norm(config)
        self.attention = Attention(config, layer, rotary)
        self.mlp_norm = make_norm(config)
        self.mlp = GatedFeedForward(config) if config.activation in GATED else FeedForward(config)

    def forward(self, x: Tensor, update: Tensor | None, now: Pass) -> tuple[Tensor, Tensor | None]:
        """Return the stream and the update of the feed-forward part, each (B, T, C)."""
        y, x = self.attention_norm.add(x, update, *now.dropout(self.dropout_p, mlp_output_site(self.layer - 1)))
        update = self.attention(y, now)
        y, x = self.mlp_norm.add(x, update, *now.dropout(self.dropout_p, attention_output_site(self.layer)))
        return x, self.mlp(y)


class PostNormBlock(nn.Module):
    """x = norm(x + attention(x)), then x = norm(x + mlp(x)): the order of 2017 and of BERT."""

    def __init__(self, config: ModelConfig, layer: int, rotary: Rotary | None) -> None:
        super().__init__()
        self.layer, self.dropout_p = layer, config.dropout
        self.attention = Attention(config, layer, rotary)
        self.attention_norm = make_norm(config)
        self.mlp = GatedFeedForward(config) if config.activation in GATED else FeedForward(config)
        self.mlp_norm = make_norm(config)

    def forward(self, x: Tensor, update: Tensor | None, now: Pass) -> tuple[Tensor, Tensor | None]:
        """Return the stream (B, T, C) and None: nothing is left to be added."""
        p, layer = self.dropout_p, self.layer
        x, _ = self.attention_norm.add(x, self.attention(x, now), *now.dropout(p, attention_output_site(layer)))
        x, _ = self.mlp_norm.add(x, self.mlp(x), *now.dropout(p, mlp_output_site(layer)))
        return x, None
