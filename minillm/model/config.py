"""What a Transformer is made of: few choices, each independent of the others.

Read next: `layers.py`.
"""

from dataclasses import dataclass
from typing import Literal

from minillm.config import divisors, setting

Kind = Literal["decoder", "encoder"]
Norm = Literal["layer_norm", "rms_norm"]
Position = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "relu2", "swiglu", "geglu"]
GATED = ("swiglu", "geglu")
LARGEST = 2**31  # of a size; no machine holds one, and products of two stay below 2**63


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of an encoder or decoder. Defaults are those of a small GPT-2."""

    kind: Kind = setting("decoder", "decoder: causal attention; encoder: attention to both sides")
    vocab_size: int = setting(0, "number of token ids, V; 0: as many as the tokenizer has")
    context: int = setting(1024, "longest sequence, in tokens")
    num_layers: int = setting(12, "number of blocks")
    width: int = setting(768, "size of the residual stream, C")
    num_heads: int = setting(12, "number of query heads, H")
    num_kv_heads: int | None = setting(
        None, "number of key and value heads; none: as many as query heads; 1: multi-query"
    )
    head_width: int | None = setting(None, "size of a head, D; none: width / num_heads")
    mlp_width: int | None = setting(
        None, "hidden size of the feed-forward layer; none: 4 * width, gated: 8/3 * width up to a multiple of 64"
    )
    norm: Norm = setting("layer_norm", "layer_norm or rms_norm")
    norm_position: Literal["pre", "post"] = setting("pre", "pre: x + f(norm(x)); post: norm(x + f(x))")
    norm_eps: float = setting(1e-5, "added to the variance or mean square")
    position: Position = setting("learned", "how order enters: learned, sinusoidal, rotary, alibi or none")
    rotary_theta: float = setting(10000.0, "base of the rotary wavelengths (layers that see everything)")
    rotary_theta_local: float | None = setting(None, "base in sliding-window layers; none: rotary_theta")
    activation: Activation = setting(
        "gelu_tanh", "feed-forward non-linearity: relu, gelu, gelu_tanh, relu2, swiglu or geglu"
    )
    bias: bool = setting(True, "biases in linear layers and layer norms")
    qk_norm: bool = setting(False, "RMS-normalise queries and keys per head, with a learned gain")
    tied_embeddings: bool = setting(True, "the output weight is the token embedding")
    token_types: int = setting(0, "number of token types (sentence A/B); 0: none")
    embedding_norm: bool = setting(
        False, "normalise the embedding; a pre-norm model then drops its first attention norm"
    )
    head: Literal["linear", "transform", "none"] = setting(
        "linear", "what precedes the output weight: nothing, BERT's dense-activation-norm, or no head at all"
    )
    head_bias: bool = setting(False, "a bias per token id on the logits")
    pooler: bool = setting(False, "BERT's tanh layer on the first token")
    dropout: float = setting(0.0, "probability of dropping an element of embedding and sub-layer outputs")
    attention_dropout: float = setting(0.0, "probability of dropping an attention weight")
    window: int | None = setting(
        None,
        "tokens seen by sliding-window layers (decoder: past ones; encoder: half on each side); none: no such layers",
    )
    global_every: int = setting(1, "with a window: layers 0, n, 2n, ... see everything; 0: none does")
    attention_softcap: float | None = setting(None, "scores become cap * tanh(score / cap)")
    logit_softcap: float | None = setting(None, "logits become cap * tanh(logit / cap)")
    init_std: float = setting(0.02, "standard deviation of initial weights; `init.py` has the table")

    def __post_init__(self) -> None:
        for name in ("context", "num_layers", "width", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_kv_heads", "head_width", "mlp_width", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"model.{name} must be at least 1, got {value}; leave it out for the default")
        for name in ("context", "width", "head_width"):
            if (getattr(self, name) or 0) >= LARGEST:
                raise ValueError(f"model.{name} must be below 2**31, got {getattr(self, name)}")
        if self.head_width is None and self.width % self.num_heads:
            near = min(divisors(self.width), key=lambda h: (abs(h - self.num_heads), h))
            raise ValueError(f"model.num_heads ({self.num_heads}) must divide model.width ({self.width}); try {near}")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads ({self.kv_heads}) must divide model.num_heads ({self.num_heads}); try 1"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.head_dim}; change model.num_heads")
        if self.position == "sinusoidal" and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even model.width, got {self.width}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"model.{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("norm_eps", "rotary_theta", "rotary_theta_local", "attention_softcap", "logit_softcap"):
            if (value := getattr(self, name)) is not None and not 0.0 < value < float("inf"):
                raise ValueError(f"model.{name} must be above 0 and finite, got {value}")
        if min(self.vocab_size, self.token_types, self.global_every) < 0:
            raise ValueError("model.vocab_size, token_types and global_every must not be negative")
        if self.window is not None and self.global_every == 1:
            raise ValueError(
                "model.window is the window of no layer, as all see everything with model.global_every = 1; "
                "set that to 0, or to n for one layer in n that does"
            )
        if not 0.0 <= self.init_std < float("inf"):
            raise ValueError(f"model.init_std must be 0 or above and finite, got {self.init_std}")
        if self.head == "none" and self.head_bias:
            raise ValueError("model.head_bias needs a head; set model.head to linear or transform")

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Size of one head, D."""
        return self.width // self.num_heads if self.head_width is None else self.head_width

    @property
    def hidden(self) -> int:
        """Hidden size of the feed-forward layer."""
        if self.mlp_width is not None:
            return self.mlp_width
        return -(-8 * self.width // (3 * 64)) * 64 if self.activation in GATED else 4 * self.width

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens, or None where it sees everything."""
        if self.window is None or (self.global_every and layer % self.global_every == 0):
            return None
        return self.window
