"""Encoder and decoder: embeddings, a stack of blocks, a norm, and a head on request. Token ids in, hidden states out.

    tokens (B, T) -> embeddings -> block 0 .. block L-1 -> final norm -> hidden (B, T, C)  [-> head -> logits (B, T, V)]

An objective takes the hidden states and the output weight, so that logits need not exist all at once.

Read next: `heads.py` and `cache.py`, then `../objectives/causal_lm.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from minillm_kernels import dropout
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minillm.model.cache import Cache
from minillm.model.config import ModelConfig
from minillm.model.heads import LanguageModelHead, Pooler
from minillm.model.init import initialise
from minillm.model.layers import (
    Embedding,
    Pass,
    PostNormBlock,
    PreNormBlock,
    Rotary,
    make_norm,
    mlp_output_site,
)

EMBEDDING_SITE = 0  # of its dropout; see layers.Pass.dropout


def sinusoids(length: int, width: int) -> Tensor:
    """Return the fixed position vectors of 2017, (P, C) float32.

        row[p, 2i] = sin(p / 10000^(2i / C)),     row[p, 2i + 1] = cos(p / 10000^(2i / C))

    Source: Vaswani et al. (2017), arXiv:1706.03762.
    """
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (C/2,)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)  # (P, C/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


class Embeddings(nn.Module):
    """x = dropout(norm(token + position + type)); what the configuration does not have is left out."""

    sinusoids: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.width)
        self.positions = Embedding(config.context, config.width) if config.position == "learned" else None
        fixed = sinusoids(config.context, config.width) if config.position == "sinusoidal" else None
        self.register_buffer("sinusoids", fixed, persistent=False)
        self.types = Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = make_norm(config) if config.embedding_norm else None
        self.dropout_p = config.dropout

    def forward(self, tokens: Tensor, token_types: Tensor | None, now: Pass) -> Tensor:
        """Return (B, T, C) for tokens (B, T); without token types all are of type 0."""
        x = self.tokens(tokens)  # (B, T, C)
        where = torch.arange(tokens.shape[1], device=tokens.device) if now.positions is None else now.positions
        if self.positions is not None:
            x = x + self.positions(where)  # (T, C) or (B, T, C)
        if self.sinusoids is not None:
            x = x * math.sqrt(x.shape[-1]) + self.sinusoids[where]  # as in 2017; `init.py` draws the table for it
        if self.types is not None:
            x = x + self.types(torch.zeros_like(tokens) if token_types is None else token_types)
        if self.norm is not None:
            x = self.norm(x)
        p, seed = now.dropout(self.dropout_p, EMBEDDING_SITE)
        return x if seed is None else dropout(x, p, seed)


class Transformer(nn.Module):
    """What encoder and decoder share, which is everything but the direction of attention and the cache.

    config: what it was built from.
    compute_dtype: of the activations; set by `compute_in`. Parameters stay in float32.
    recomputing: whether the backward pass computes each block anew; set by `recompute_blocks`.
    lm_head: None where config.head is "none".
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the modules by the configuration and draw their weights; `build_model` chooses the right subclass."""
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("model.vocab_size is 0: set it to the tokenizer's number of tokens before building")
        self.config = config
        self.compute_dtype = torch.float32
        self.recomputing = False
        self.embeddings = Embeddings(config)
        block = PreNormBlock if config.norm_position == "pre" else PostNormBlock
        rotaries = _rotaries(config)
        self.blocks = nn.ModuleList(block(config, layer, rotaries[layer]) for layer in range(config.num_layers))
        self.final_norm = make_norm(config) if config.norm_position == "pre" else None
        self.lm_head = LanguageModelHead(config) if config.head != "none" else None
        self.pooler = Pooler(config) if config.pooler else None
        initialise(self, config)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute activations in `dtype` from now on; parameters stay as they are."""
        self.compute_dtype = dtype

    def recompute_blocks(self) -> None:
        """Keep no more of a block than its inputs from now on, and compute it once more in the backward pass.

        Gradients stay the same, bit for bit without torch.compile: dropout is a function of seeds, not of when it runs.

        Cost: memory of activations falls to (B, T, C) or two of them a block, beside what one block needs for itself;
        one forward pass of the blocks more.
        Source: Chen et al. (2016), arXiv:1604.06174.
        """
        self.recomputing = True

    def forward(
        self,
        tokens: Tensor,
        *,
        starts: Tensor | None = None,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
        cache: Cache | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of every token, after the final norm.

        Args:
            tokens: (B, T) int64, each in [0, V).
            starts: (B,) int64, first real token of each row, columns of the cache counted; None: 0.
            lengths: (B,) int64, real tokens of each row; None: to the end. Padding is never attended to, and what comes
                out at its places means nothing.
            segments: (B, T) int64; attention stays within equal numbers. None: one document a row.
            positions: (B, T) int64 in [0, context); None: counted from `starts`.
            token_types: (B, T) int64; None: all 0.
            cache: keys and values of the tokens before these; they are added to it. Decoder only.
            seed: of the dropout, which only happens in training mode; None: drawn from PyTorch's default generator.
        Returns:
            (B, T, C) in `compute_dtype`.
        Raises:
            ValueError: more tokens than the context, padding and cache counted, where positions are None; inputs that
                do not go together.
        """
        past = 0 if cache is None else cache.length
        self._check(tokens, cache)
        if positions is None and past + tokens.shape[1] > self.config.context:
            raise ValueError(
                f"{past + tokens.shape[1]} tokens do not fit the model's context of {self.config.context}; shorten them"
            )
        if cache is not None and (lengths is not None or segments is not None):
            raise ValueError("a cache goes with padding on the left only (starts), not with lengths or segments")
        now = Pass(
            positions=_positions(tokens, past, starts) if positions is None else positions,
            key_start=starts,
            key_stop=None if lengths is None else lengths if starts is None else starts + lengths,
            segments=segments,
            cache=cache,
            seed=self._dropout_seed(seed, tokens.device),
        )
        x = self.embeddings(tokens, token_types, now).to(self.compute_dtype)  # (B, T, C)
        update = None
        for block in self.blocks:
            if self.recomputing and torch.is_grad_enabled():
                x, update = checkpoint(block, x, update, now, use_reentrant=False)
            else:
                x, update = block(x, update, now)
        if self.final_norm is not None:
            last = mlp_output_site(self.config.num_layers - 1)
            x, _ = self.final_norm.add(x, update, *now.dropout(self.config.dropout, last))
        if cache is not None:
            cache.length = past + tokens.shape[1]
        return x

    def _check(self, tokens: Tensor, cache: Cache | None) -> None:
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be (B, T), got {tuple(tokens.shape)}; add a batch axis with tokens[None]")
        if cache is not None and self.config.kind != "decoder":
            raise ValueError("an encoder has no cache: every token attends to later ones")

    def _dropout_seed(self, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
        """Return the seed of this pass as () int64 on the device, or None where nothing is dropped.

        One that is given is passed on by a model without dropout too, for that of adapters in its blocks.
        """
        if not self.training:
            return None
        if seed is not None:
            return torch.as_tensor(seed, dtype=torch.int64, device=device)
        drops = self.config.dropout > 0.0 or self.config.attention_dropout > 0.0
        return torch.randint(2**62, (), device=device) if drops else None

    def head(self, hidden: Tensor) -> Tensor:
        """Return what is multiplied by the output weight, (..., C) for hidden (..., C).

        Raises:
            ValueError: the model has no head.
        """
        if self.lm_head is None:
            raise ValueError("this model was built without a head; set model.head to linear or transform")
        return self.lm_head(hidden)

    @property
    def output_weight(self) -> Tensor:
        """The output weight (V, C), the token embedding itself where they are tied."""
        weight = None if self.lm_head is None else self.lm_head.weight
        return self.embeddings.tokens.weight if weight is None else weight

    @property
    def output_bias(self) -> Tensor | None:
        """The bias on the logits (V,), or None."""
        return None if self.lm_head is None else self.lm_head.bias

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of hidden states (..., C), in their dtype, capped where the model says so."""
        x = self.head(hidden)
        bias = None if self.output_bias is None else self.output_bias.to(x.dtype)
        logits = F.linear(x, self.output_weight.to(x.dtype), bias)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def logits(self, tokens: Tensor, **inputs: Any) -> Tensor:
        """Return the logits (B, T, V) of tokens (B, T); `inputs` as in `forward`."""
        return self.project(self(tokens, **inputs))

    def pooled(self, hidden: Tensor, starts: Tensor | None = None) -> Tensor:
        """Return the pooler's summary (B, C) of hidden states (B, T, C).

        Raises:
            ValueError: the model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("this model has no pooler; set model.pooler")
        if starts is None:
            return self.pooler(hidden[:, 0])
        return self.pooler(hidden[torch.arange(len(hidden), device=hidden.device), starts])


class Encoder(Transformer):
    """Every token attends to all others: reads a text as a whole."""


class Decoder(Transformer):
    """Every token attends to itself and those before it: writes a text token by token."""

    def new_cache(self, batch: int, length: int) -> Cache:
        """Return an empty cache for `batch` rows of `length` tokens, in the model's compute dtype."""
        config = self.config
        return Cache(
            num_layers=config.num_layers,
            batch=batch,
            capacity=length,
            kv_heads=config.kv_heads,
            head_width=config.head_dim,
            dtype=self.compute_dtype,
            device=self.embeddings.tokens.weight.device,
        )


def build_model(config: ModelConfig) -> Encoder | Decoder:
    """Return a model with float32 weights, drawn from PyTorch's default generator by the table of `init.py`.

    Raises:
        ValueError: config.vocab_size is 0.

    >>> model = build_model(ModelConfig(vocab_size=11, context=8, num_layers=1, width=8, num_heads=2))
    >>> model(torch.zeros(1, 5, dtype=torch.int64)).shape
    torch.Size([1, 5, 8])
    """
    return Decoder(config) if config.kind == "decoder" else Encoder(config)


def _positions(tokens: Tensor, past: int, starts: Tensor | None) -> Tensor | None:
    """Return the positions (B, T) of tokens behind `past` columns; None where they are 0 .. T-1 in all rows."""
    if past == 0 and starts is None:
        return None
    columns = torch.arange(past, past + tokens.shape[1], device=tokens.device)  # (T,)
    if starts is None:
        return columns.expand(tokens.shape)
    return (columns - starts[:, None]).clamp(min=0)  # (B, T); padding on the left takes position 0


def _rotaries(config: ModelConfig) -> list[Rotary | None]:
    """Return the rotary tables of each layer; layers with the same base share one."""
    if config.position != "rotary":
        return [None] * config.num_layers
    made: dict[float, Rotary] = {}
    tables: list[Rotary | None] = []
    for layer in range(config.num_layers):
        theta = config.rotary_theta
        if config.window_of(layer) is not None and config.rotary_theta_local is not None:
            theta = config.rotary_theta_local
        if theta not in made:
            made[theta] = Rotary(config.context, config.head_dim, theta)
        tables.append(made[theta])
    return tables
