"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): pre-norm without biases, rotary positions, GeGLU, and windows.

Read next: `labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.checkpoint.hf.entries import Entry, affine
from minillm.checkpoint.hf.family import ANY, Family, Purpose, TaskHead
from minillm.checkpoint.hf.keys import Keys
from minillm.checkpoint.hf.layers import FULL, SLIDING, alternation, layer_words, unscaled
from minillm.model.config import ModelConfig

WINDOW = 128
THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}


def read(keys: Keys) -> ModelConfig:
    """Return the configuration that ModernBERT's settings describe."""
    keys.only("hidden_activation", "gelu")
    keys.only("classifier_activation", "gelu")
    for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        keys.only(name, False)
    keys.only("decoder_bias", True)
    for name in ("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction"):
        keys.ignore(name)  # how, or of which tokens, the same numbers are computed
    for name in (
        "sparse_pred_ignore_index",
        "cls_token_id",
        "sep_token_id",
        "layer_norm_eps",
        "position_embedding_type",
    ):
        keys.ignore(name)  # written by its authors, read by no one
    keys.choice("classifier_pooling", {"cls": "cls", "mean": "mean"}, "cls")  # read with the head
    for name in ("embedding_dropout", "classifier_dropout"):
        keys.share(name, 0.0)
    layers = keys.layers("num_hidden_layers")
    usual = keys.whole("global_attn_every_n_layers", 3)
    words = keys.words("layer_types") or [SLIDING if n % usual else FULL for n in range(layers)]
    every = alternation(keys, words, layers)
    thetas, window = _thetas(keys), keys.whole("local_attention", WINDOW)
    return ModelConfig(
        kind="encoder",
        vocab_size=keys.whole("vocab_size"),
        context=keys.whole("max_position_embeddings"),
        num_layers=layers,
        width=keys.whole("hidden_size"),
        num_heads=keys.whole("num_attention_heads"),
        mlp_width=keys.whole("intermediate_size"),
        norm_eps=keys.fraction("norm_eps", 1e-5),
        position="rotary",
        rotary_theta=thetas[FULL],
        rotary_theta_local=thetas[SLIDING],
        activation="geglu",
        bias=False,
        embedding_norm=True,
        head="transform",
        head_bias=True,
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        window=None if every == 1 else window,
        global_every=every,
        dropout=keys.share("mlp_dropout", 0.0),
        attention_dropout=keys.share("attention_dropout", 0.0),
        init_std=keys.fraction("initializer_range", 0.02),
    )


def _thetas(keys: Keys) -> dict[str, float]:
    """Return the rotary base of each kind of layer: `rope_parameters`, or the two keys of before."""
    before = {
        FULL: keys.positive("global_rope_theta", THETAS[FULL]),
        SLIDING: keys.positive("local_rope_theta", THETAS[SLIDING]),
    }
    keys.absent("rope_scaling")
    table = keys.table_of("rope_parameters") or {}
    if any(kind not in before or not isinstance(part, dict) for kind, part in table.items()):
        keys.wrong("rope_parameters", f"tables of {FULL} and {SLIDING}")
    return {kind: unscaled(keys, "rope_parameters", table.get(kind)) or theta for kind, theta in before.items()}


def write(model: ModelConfig) -> dict[str, Any]:
    """Return ModernBERT's settings of a configuration."""
    local = model.rotary_theta if model.rotary_theta_local is None else model.rotary_theta_local
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "hidden_activation": "gelu",
        "max_position_embeddings": model.context,
        "norm_eps": model.norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "classifier_pooling": "cls",
        "global_attn_every_n_layers": model.global_every,
        "layer_types": layer_words(model),
        "local_attention": model.window or WINDOW,
        "global_rope_theta": model.rotary_theta,
        "local_rope_theta": local,
        "attention_dropout": model.attention_dropout,
        "embedding_dropout": model.dropout,
        "mlp_dropout": model.dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
    }


def body(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of embedding, layers and the last norm; the first layer has no norm before its attention."""
    yield Entry("embeddings.tok_embeddings.weight", ("embeddings.tokens.weight",))
    yield from affine("embeddings.norm", "embeddings.norm", bias=False)
    for n in range(model.num_layers):
        theirs, ours = f"layers.{n}", f"blocks.{n}"
        q, k, v = (f"{ours}.attention.{name}" for name in "qkv")
        if n > 0:
            yield from affine(f"{theirs}.attn_norm", f"{ours}.attention_norm", bias=False)
        yield from affine(f"{theirs}.attn.Wqkv", q, k, v, bias=False)
        yield from affine(f"{theirs}.attn.Wo", f"{ours}.attention.output", bias=False)
        yield from affine(f"{theirs}.mlp_norm", f"{ours}.mlp_norm", bias=False)
        yield from affine(f"{theirs}.mlp.Wi", f"{ours}.mlp.gate", f"{ours}.mlp.up", bias=False)
        yield from affine(f"{theirs}.mlp.Wo", f"{ours}.mlp.down", bias=False)
    yield from affine("final_norm", "final_norm", bias=False)


def language_head(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of the masked language model's head."""
    yield from affine("head.dense", "lm_head.transform.dense", bias=False)
    yield from affine("head.norm", "lm_head.transform.norm", bias=False)
    yield Entry("decoder.bias", ("lm_head.bias",))
    if not model.tied_embeddings:
        yield Entry("decoder.weight", ("lm_head.weight",))


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head, which has the layer of the language model's."""
    yield from affine("head.dense", "head.layer.dense", bias=False)
    yield from affine("head.norm", "head.layer.norm", bias=False)
    yield from affine("classifier", "head.dense")


MODERNBERT = Family(
    model_type="modernbert",
    title="ModernBERT",
    prefix="model.",
    classes={
        "ModernBertModel": "hidden_states",
        "ModernBertForMaskedLM": "masked_lm",
        "ModernBertForSequenceClassification": "classification",
        "ModernBertForTokenClassification": "tagging",
        "ModernBertForQuestionAnswering": "question_answering",
    },
    read=read,
    write=write,
    settings={
        "kind": ("encoder",),
        "norm": ("layer_norm",),
        "norm_position": ("pre",),
        "position": ("rotary",),
        "rotary_theta_local": ANY,
        "activation": ("geglu",),
        "bias": (False,),
        "embedding_norm": (True,),
        "window": ANY,
        "global_every": range(1, 2**16),
    },
    heads=("transform", True),
    body=body,
    language_head=language_head,
    task_heads={
        "classification": TaskHead(pooling=("cls", "mean"), layer="transform"),
        "tagging": TaskHead(layer="transform"),
        "question_answering": TaskHead(layer="transform"),
    },
    task_names=task_names,
    copies={"decoder.weight": "embeddings.tokens.weight"},
)
