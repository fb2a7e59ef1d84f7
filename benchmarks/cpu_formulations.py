"""The ops as `cpu_defaults.py` measures them: the registrations of `ops/`, and compositions that are tried there alone.

Whoever can think of a faster one adds it here: a function of the tensors that gives the same numbers.

Read next: `ops/registration.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import minillm_kernels as mk
import torch
import torch.nn.functional as F
from minillm_kernels.attention.composed import BatchedProducts
from torch import Tensor

from benchmarks.ops import BENCHMARKS
from benchmarks.ops.registration import Dims, OpBenchmark, Outputs, Run, Tensors

DROPOUT_P, SEED = 0.1, 7
# Kinds of sizes, see `cpu_defaults.sizes`, of ops that do not work on the residual stream.
HIDDEN = ("relu", "gelu", "relu2", "swiglu", "geglu", "gelu_bias_dropout", "swiglu_dropout")
KINDS = dict.fromkeys(HIDDEN, "hidden") | {"cross_entropy": "loss", "linear_cross_entropy": "loss"}
# Providers that hold R x V logits at once: fast where they fit, and no default of an op that promises not to.
HOLD_LOGITS = {"linear_cross_entropy": ("reference", "F.linear, F.cross_entropy", "F.linear_cross_entropy")}

Peer = Callable[[Dims, torch.device], Run]


def _products(causal: bool, dims: Dims, device: torch.device) -> Run:
    """Return attention by batched products, which the default takes where it holds them for faster."""
    added = torch.zeros(dims["T"], dims["S"]).masked_fill(torch.ones(dims["T"], dims["S"]).triu(1) > 0, -torch.inf)
    scale = dims["D"] ** -0.5

    def run(t: Tensors) -> Outputs:
        mask = added[None, None] if causal else None
        return BatchedProducts.apply(t["q"], t["k"], t["v"], None, mask, None, 0.0, None, scale)

    return run


def _sdpa_dropout(dims: Dims, device: torch.device) -> Run:
    def run(t: Tensors) -> Outputs:
        q, k, v = (t[n].transpose(1, 2) for n in "qkv")  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=DROPOUT_P).transpose(1, 2)

    return run


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return rotary of halves as its definition has it: four products."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, D/2)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def _four_products(dims: Dims, device: torch.device) -> Run:
    return lambda t: (_turned(t["q"], t["cos"], t["sin"]), _turned(t["k"], t["cos"], t["sin"]))


def _gathered(dims: Dims, device: torch.device) -> Run:
    return lambda t: t["weight"][t["tokens"]]


MORE: dict[str, dict[str, Peer]] = {
    "attention_causal": {"batched products": functools.partial(_products, True)},
    "attention_full": {"batched products": functools.partial(_products, False)},
    "rotary": {"four products": _four_products},
    "embedding": {"weight[tokens]": _gathered},
}


def _formulations() -> dict[str, OpBenchmark]:
    found = {
        name: dataclasses.replace(benchmark, peers={**benchmark.peers, **MORE.get(name, {})})
        for name, benchmark in BENCHMARKS.items()
        if name != "attention_decode"  # no part of a training step
    }
    found["attention_dropout"] = dataclasses.replace(
        BENCHMARKS["attention_full"],
        name="attention_dropout",
        call=lambda t, dims: mk.attention(t["q"], t["k"], t["v"], dropout_p=DROPOUT_P, seed=SEED),
        peers={"SDPA, dropout": _sdpa_dropout},
        unchecked=frozenset({"SDPA, dropout"}),  # other random numbers
    )
    return found


FORMULATIONS = _formulations()
