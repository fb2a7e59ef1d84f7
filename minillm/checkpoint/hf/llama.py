"""Llama (Touvron et al. 2023, arXiv:2302.13971), Mistral (arXiv:2310.06825: a window) and Qwen-3 (arXiv:2505.09388:
queries and keys are normed): one table of names, three sets of settings.

Rotary positions turn the two halves of a head against each other, there as here: nothing is permuted.

Read next: `modernbert.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minillm.checkpoint.hf.entries import Entry, affine, output_weight
from minillm.checkpoint.hf.family import ANY, Allowed, Family, Purpose, TaskHead
from minillm.checkpoint.hf.keys import Keys
from minillm.checkpoint.hf.layers import alternation, layer_words, rotary_theta
from minillm.model.config import ModelConfig

SILU = {"silu": "swiglu", "swish": "swiglu"}
PRE_NORM: Mapping[str, Allowed] = {
    "kind": ("decoder",),
    "norm": ("rms_norm",),
    "norm_position": ("pre",),
    "position": ("rotary",),
    "activation": ("swiglu",),
    "bias": (False,),
    "num_kv_heads": ANY,
    "head_width": ANY,
}


def decoder(keys: Keys, **changed: Any) -> ModelConfig:
    """Return the configuration that the settings all three share describe, some of it changed."""
    keys.share("classifier_dropout", 0.1)
    keys.share("hidden_dropout", 0.1)
    keys.only("token_classification_bias", True)
    settings: dict[str, Any] = {
        "kind": "decoder",
        "vocab_size": keys.whole("vocab_size"),
        "context": keys.whole("max_position_embeddings"),
        "num_layers": keys.layers("num_hidden_layers"),
        "width": keys.whole("hidden_size"),
        "num_heads": keys.whole("num_attention_heads"),
        "num_kv_heads": keys.whole("num_key_value_heads", None),
        "head_width": keys.whole("head_dim", None),
        "mlp_width": keys.whole("intermediate_size"),
        "norm": "rms_norm",
        "norm_eps": keys.fraction("rms_norm_eps", 1e-6),
        "position": "rotary",
        "rotary_theta": rotary_theta(keys, 10_000.0),
        "activation": keys.choice("hidden_act", SILU, "silu"),
        "bias": False,
        "tied_embeddings": keys.flag("tie_word_embeddings", False),
        "attention_dropout": keys.share("attention_dropout", 0.0),
        "init_std": keys.fraction("initializer_range", 0.02),
    }
    return ModelConfig(**settings | changed)


def settings_of(model: ModelConfig) -> dict[str, Any]:
    """Return the settings that all three share."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rotary_theta,  # the old key: transformers, llama.cpp and vLLM all read it
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
    }


def read_llama(keys: Keys) -> ModelConfig:
    """Return the configuration that Llama's settings describe; biases are in all linear layers or in none here."""
    bias = keys.flag("attention_bias", False)
    if keys.flag("mlp_bias", False) != bias:
        keys.refuse("mlp_bias", f"attention_bias is {str(bias).lower()}, and the two must agree")
    return decoder(keys, bias=bias)


def write_llama(model: ModelConfig) -> dict[str, Any]:
    """Return Llama's settings of a configuration."""
    return settings_of(model) | {"attention_bias": model.bias, "mlp_bias": model.bias}


def read_mistral(keys: Keys) -> ModelConfig:
    """Return the configuration that Mistral's settings describe; transformers' defaults are those of the 7B model."""
    window = sliding_window(keys)
    kv_heads = keys.whole("num_key_value_heads", 8)
    keys.absent("layer_types")
    return decoder(keys, window=window, global_every=0 if window else 1, num_kv_heads=kv_heads)


def sliding_window(keys: Keys) -> int | None:
    """Return the window that Mistral's and Qwen-3's settings have: null is none, a missing one the 7B model's."""
    return keys.whole("sliding_window", None if "sliding_window" in keys.table else 4096)


def write_mistral(model: ModelConfig) -> dict[str, Any]:
    """Return Mistral's settings of a configuration."""
    return settings_of(model) | {"sliding_window": model.window}


def read_qwen3(keys: Keys) -> ModelConfig:
    """Return the configuration that Qwen-3's settings describe."""
    keys.only("attention_bias", False)
    layers, width = keys.layers("num_hidden_layers"), sliding_window(keys)
    sliding, first = keys.flag("use_sliding_window", False), keys.whole("max_window_layers", 28, least=0)
    words = keys.words("layer_types")
    if words is None and width is None:
        words = ["full_attention"] * layers
    elif words is None:
        words = ["sliding_attention" if sliding and n >= first else "full_attention" for n in range(layers)]
    every = alternation(keys, words, layers)
    if every != 1 and not sliding:
        keys.refuse("use_sliding_window", "layer_types has layers with a window")
    if every != 1 and width is None:
        keys.refuse("sliding_window", "layer_types has layers with a window")
    window = None if every == 1 else width
    # null is as many as query heads, a missing one what transformers' class has
    kv_heads = keys.whole("num_key_value_heads", None if "num_key_value_heads" in keys.table else 32)
    head_width = keys.whole("head_dim", 128)
    return decoder(keys, qk_norm=True, num_kv_heads=kv_heads, head_width=head_width, window=window, global_every=every)


def write_qwen3(model: ModelConfig) -> dict[str, Any]:
    """Return Qwen-3's settings of a configuration."""
    return settings_of(model) | {
        "attention_bias": False,
        "use_sliding_window": model.window is not None,
        "sliding_window": model.window,
        "max_window_layers": 0 if model.window else model.num_layers,
        "layer_types": layer_words(model),
    }


def body(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of embedding, layers and the last norm."""
    yield Entry("embed_tokens.weight", ("embeddings.tokens.weight",))
    for n in range(model.num_layers):
        theirs, ours = f"layers.{n}", f"blocks.{n}"
        yield from affine(f"{theirs}.input_layernorm", f"{ours}.attention_norm", bias=False)
        for name, own in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "output")):
            yield from affine(f"{theirs}.self_attn.{name}", f"{ours}.attention.{own}", bias=model.bias)
        if model.qk_norm:
            yield from affine(f"{theirs}.self_attn.q_norm", f"{ours}.attention.q_norm", bias=False)
            yield from affine(f"{theirs}.self_attn.k_norm", f"{ours}.attention.k_norm", bias=False)
        yield from affine(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", bias=False)
        for name in ("gate", "up", "down"):
            yield from affine(f"{theirs}.mlp.{name}_proj", f"{ours}.mlp.{name}", bias=model.bias)
    yield from affine("norm", "final_norm", bias=False)


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head."""
    if purpose == "question_answering":
        return affine("qa_outputs", "head.dense")
    return affine("score", "head.dense", bias=purpose == "tagging")


def family(name: str, title: str, **parts: Any) -> Family:
    """Return one of the three; `name` is how its classes begin."""
    return Family(
        title=title,
        prefix="model.",
        classes={
            f"{name}Model": "hidden_states",
            f"{name}ForCausalLM": "causal_lm",
            f"{name}ForSequenceClassification": "classification",
            f"{name}ForTokenClassification": "tagging",
            f"{name}ForQuestionAnswering": "question_answering",
        },
        heads=("linear", False),
        body=body,
        language_head=output_weight,
        task_heads={
            "classification": TaskHead(pooling=("last",), bias=False),
            "tagging": TaskHead(),
            "question_answering": TaskHead(),
        },
        task_names=task_names,
        copies={"lm_head.weight": "embeddings.tokens.weight"},
        left_out=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        **parts,
    )


LLAMA = family(
    "Llama",
    "Llama",
    model_type="llama",
    read=read_llama,
    write=write_llama,
    settings={**PRE_NORM, "bias": (False, True)},
    question_prefix="transformer.",
)
MISTRAL = family(
    "Mistral",
    "Mistral",
    model_type="mistral",
    read=read_mistral,
    write=write_mistral,
    settings={**PRE_NORM, "window": ANY, "global_every": (0, 1)},
)
QWEN3 = family(
    "Qwen3",
    "Qwen-3 (dense)",
    model_type="qwen3",
    read=read_qwen3,
    write=write_qwen3,
    settings={**PRE_NORM, "qk_norm": (True,), "window": ANY, "global_every": ANY},
    question_prefix="transformer.",
)
