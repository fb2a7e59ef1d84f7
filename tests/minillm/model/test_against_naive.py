"""The model against the same maths written once more without any of the project's code: loops, float64, no masks.

A second truth for the blocks is PyTorch's own `TransformerEncoderLayer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.model.config import ModelConfig
from minillm.model.layers import Pass
from minillm.model.transformer import Decoder, Encoder, build_model

Weights = dict[str, Tensor]


def make(**choices: Any) -> Encoder | Decoder:
    """A small float64 model whose every parameter is random and large enough to matter."""
    shape: dict[str, Any] = {
        "vocab_size": 31,
        "context": 16,
        "num_layers": 3,
        "width": 24,
        "num_heads": 4,
        "mlp_width": 40,
    }
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(shape | choices))).double()
    model.compute_in(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


# --- one sequence, one head, one query at a time -------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
}


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w: Weights, name: str, x: Tensor, kind: str, eps: float) -> Tensor:
    if kind == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"]
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def turned(x: Tensor, theta: float) -> Tensor:
    """Rotary positions as complex numbers: pair i of position p is multiplied by exp(1j p theta^(-2 i / D))."""
    T, D = x.shape
    frequency = theta ** (-2 * torch.arange(D // 2).double() / D)
    turn = torch.polar(torch.ones(T, D // 2).double(), torch.arange(T).double()[:, None] * frequency)
    y = torch.complex(x[:, : D // 2], x[:, D // 2 :]) * turn
    return torch.cat([y.real, y.imag], dim=1)


def attend(w: Weights, c: ModelConfig, layer: int, x: Tensor) -> Tensor:
    name, T, D = f"blocks.{layer}.attention", len(x), c.head_dim
    window = None if c.window is None or (c.global_every and layer % c.global_every == 0) else c.window
    theta = c.rotary_theta if window is None else c.rotary_theta_local or c.rotary_theta
    heads = []
    for h in range(c.num_heads):
        shared = h // (c.num_heads // (c.num_kv_heads or c.num_heads))
        q = linear(w, f"{name}.q", x)[:, h * D : (h + 1) * D]
        k = linear(w, f"{name}.k", x)[:, shared * D : (shared + 1) * D]
        v = linear(w, f"{name}.v", x)[:, shared * D : (shared + 1) * D]
        if c.qk_norm:
            q = norm(w, f"{name}.q_norm", q, "rms_norm", c.norm_eps)
            k = norm(w, f"{name}.k_norm", k, "rms_norm", c.norm_eps)
        if c.position == "rotary":
            q, k = turned(q, theta), turned(k, theta)
        rows = []
        for i in range(T):
            if c.kind == "decoder":
                keys = [j for j in range(i + 1) if window is None or i - j < window]
            else:
                keys = [j for j in range(T) if window is None or abs(i - j) <= window // 2]
            scores = torch.stack([q[i] @ k[j] / math.sqrt(D) for j in keys])
            if c.attention_softcap:
                scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
            if c.position == "alibi":
                scores = scores - 2.0 ** (-8 * (h + 1) / c.num_heads) * torch.tensor([abs(i - j) for j in keys])
            weights = scores.exp() / scores.exp().sum()
            rows.append(sum(weight * v[j] for weight, j in zip(weights, keys, strict=True)))
        heads.append(torch.stack(rows))
    return linear(w, f"{name}.output", torch.cat(heads, dim=1))


def feed_forward(w: Weights, c: ModelConfig, layer: int, x: Tensor) -> Tensor:
    name, f = f"blocks.{layer}.mlp", FUNCTIONS[c.activation]
    up = linear(w, f"{name}.up", x)
    inner = f(linear(w, f"{name}.gate", x)) * up if c.activation in ("swiglu", "geglu") else f(up)
    return linear(w, f"{name}.down", inner)


def embed(w: Weights, c: ModelConfig, tokens: list[int], types: list[int]) -> Tensor:
    x = torch.stack([w["embeddings.tokens.weight"][token] for token in tokens])
    if c.position == "learned":
        x = x + w["embeddings.positions.weight"][: len(x)]
    if c.position == "sinusoidal":
        C = c.width
        angles = [[p / 10000 ** (2 * (i // 2) / C) for i in range(C)] for p in range(len(x))]
        waves = [[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in angles]
        x = x * math.sqrt(C) + torch.tensor(waves, dtype=torch.float64)
    if c.token_types:
        x = x + torch.stack([w["embeddings.types.weight"][kind] for kind in types])
    return norm(w, "embeddings.norm", x, c.norm, c.norm_eps) if c.embedding_norm else x


def naive_logits(model: Encoder | Decoder, tokens: list[int], types: list[int]) -> Tensor:
    c, w = model.config, {name: p.detach() for name, p in model.named_parameters()}
    x = embed(w, c, tokens, types)
    for layer in range(c.num_layers):
        before, after = (f"blocks.{layer}.{part}_norm" for part in ("attention", "mlp"))
        if c.norm_position == "post":
            x = norm(w, before, x + attend(w, c, layer, x), c.norm, c.norm_eps)
            x = norm(w, after, x + feed_forward(w, c, layer, x), c.norm, c.norm_eps)
        else:
            normed = x if layer == 0 and c.embedding_norm else norm(w, before, x, c.norm, c.norm_eps)
            x = x + attend(w, c, layer, normed)
            x = x + feed_forward(w, c, layer, norm(w, after, x, c.norm, c.norm_eps))
    if c.norm_position == "pre":
        x = norm(w, "final_norm", x, c.norm, c.norm_eps)
    if c.head == "transform":
        f = FUNCTIONS["gelu" if c.activation in ("swiglu", "geglu") else c.activation]
        x = norm(w, "lm_head.transform.norm", f(linear(w, "lm_head.transform.dense", x)), c.norm, c.norm_eps)
    logits = x @ w["embeddings.tokens.weight" if c.tied_embeddings else "lm_head.weight"].T
    if c.head_bias:
        logits = logits + w["lm_head.bias"]
    return c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


BERT = {
    "kind": "encoder",
    "norm_position": "post",
    "activation": "gelu",
    "token_types": 2,
    "embedding_norm": True,
    "head": "transform",
    "head_bias": True,
    "norm_eps": 1e-12,
}
LLAMA: dict[str, Any] = {
    "norm": "rms_norm",
    "position": "rotary",
    "activation": "swiglu",
    "bias": False,
    "num_kv_heads": 2,
}
MODERNBERT = {
    "kind": "encoder",
    "position": "rotary",
    "rotary_theta": 160000.0,
    "rotary_theta_local": 100.0,
    "activation": "geglu",
    "bias": False,
    "embedding_norm": True,
    "head": "transform",
    "head_bias": True,
    "window": 4,
    "global_every": 2,
}
MODELS = [
    pytest.param({}, id="gpt2"),
    pytest.param(BERT, id="bert"),
    pytest.param(LLAMA, id="llama"),
    pytest.param(LLAMA | {"num_kv_heads": 1, "qk_norm": True, "tied_embeddings": False}, id="llama-mqa-qk-norm"),
    pytest.param(MODERNBERT, id="modernbert"),
    pytest.param({"position": "alibi", "window": 3, "global_every": 0, "num_kv_heads": 2}, id="alibi-window-decoder"),
    pytest.param({"position": "alibi", "kind": "encoder", "window": 5, "global_every": 3}, id="alibi-window-encoder"),
    pytest.param({"position": "sinusoidal", "norm_position": "post", "activation": "relu"}, id="transformer-2017"),
    pytest.param({"position": "none", "activation": "relu2", "norm": "rms_norm"}, id="no-positions"),
    pytest.param(
        LLAMA | {"attention_softcap": 3.0, "logit_softcap": 5.0, "window": 4, "global_every": 0, "head_width": 10},
        id="softcaps",
    ),
]


@pytest.mark.parametrize("choices", MODELS)
@pytest.mark.parametrize("length", [1, 9])
@torch.no_grad()
def test_logits_are_those_of_the_naive_model(choices: dict[str, Any], length: int) -> None:
    model = make(**choices)
    tokens, types = torch.randint(31, (2, length)), torch.randint(2, (2, length))
    logits = model.logits(tokens, token_types=types if model.config.token_types else None)
    truth = torch.stack([naive_logits(model, *rows) for rows in zip(tokens.tolist(), types.tolist(), strict=True)])
    # The tables of angles and waves are float32: off by up to 6e-8, and a few layers make more of it.
    allowed = 1e-5 if model.config.position in ("rotary", "sinusoidal") else 1e-10
    assert (logits - truth).abs().max() < allowed * truth.abs().max()


# --- PyTorch's own layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_block_is_pytorchs_layer(norm_position: str, kind: str, activation: str) -> None:
    """Outputs and gradients, with padding, in float64."""
    model = make(kind=kind, norm_position=norm_position, activation=activation, position="none", num_layers=1)
    ours = model.blocks[0]
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_position == "pre"
    ).double()
    w = dict(ours.named_parameters())
    copied = {
        f"self_attn.in_proj_{kind}": torch.cat([w[f"attention.{part}.{kind}"] for part in "qkv"])
        for kind in ("weight", "bias")
    }
    names = {"self_attn.out_proj": "attention.output", "linear1": "mlp.up", "linear2": "mlp.down"}
    names |= {"norm1": "attention_norm", "norm2": "mlp_norm"}
    copied |= {f"{a}.{kind}": w[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    theirs.load_state_dict(copied)

    lengths = torch.tensor([7, 2, 1])
    real = torch.arange(7) < lengths[:, None]  # (B, T)
    inputs = [torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    stream, update = ours(inputs[0], None, Pass(key_stop=lengths))
    y = stream if update is None else stream + update
    mask = nn.Transformer.generate_square_subsequent_mask(7).isinf() if kind == "decoder" else None
    z = theirs(inputs[1], src_mask=mask, src_key_padding_mask=~real)
    assert (y - z)[real].abs().max() < 1e-10
    for out in (y, z):
        out[real].square().sum().backward()
    pairs = [(inputs[0].grad, inputs[1].grad)]
    pairs += [(w[f"{b}.weight"].grad, theirs.get_parameter(f"{a}.weight").grad) for a, b in names.items()]
    for mine, other in pairs:
        assert mine is not None and other is not None
        assert (mine - other).abs().max() < 1e-10 * other.abs().max()


def test_the_pooler_is_tanh_of_a_dense_layer() -> None:
    model = make(kind="encoder", pooler=True)
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    assert model.pooler is not None
    dense = model.pooler.dense
    truth = torch.tanh(F.linear(hidden[:, 0], dense.weight, dense.bias))
    assert (model.pooled(hidden) - truth).abs().max() < 1e-12
