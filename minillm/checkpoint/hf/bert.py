"""BERT (Devlin et al. 2019, arXiv:1810.04805): post-norm, learned positions, token types, a head with a layer.

Read next: `roberta.py`, `gpt2.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minillm.checkpoint.hf.entries import Entry, affine
from minillm.checkpoint.hf.family import Allowed, Family, Purpose, TaskHead
from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
POST_NORM: Mapping[str, Allowed] = {
    "kind": ("encoder",),
    "norm": ("layer_norm",),
    "norm_position": ("post",),
    "position": ("learned",),
    "bias": (True,),
    "embedding_norm": (True,),
}


def encoder(keys: Keys, **changed: Any) -> ModelConfig:
    """Return the configuration that BERT's settings describe, some of it changed."""
    keys.only("position_embedding_type", "absolute")
    keys.only("pruned_heads", {})
    dropout = keys.share("hidden_dropout_prob", 0.1)
    keys.share("classifier_dropout", dropout)  # read with the head
    settings: dict[str, Any] = {
        "kind": "encoder",
        "vocab_size": keys.whole("vocab_size"),
        "context": keys.whole("max_position_embeddings"),
        "num_layers": keys.layers("num_hidden_layers"),
        "width": keys.whole("hidden_size"),
        "num_heads": keys.whole("num_attention_heads"),
        "mlp_width": keys.whole("intermediate_size"),
        "norm_position": "post",
        "norm_eps": keys.fraction("layer_norm_eps", 1e-12),
        "activation": keys.choice("hidden_act", ACTIVATIONS, "gelu"),
        "token_types": keys.whole("type_vocab_size", 2),
        "embedding_norm": True,
        "head": "transform",
        "head_bias": True,
        "tied_embeddings": keys.flag("tie_word_embeddings", True),
        "dropout": dropout,
        "attention_dropout": keys.share("attention_probs_dropout_prob", 0.1),
        "init_std": keys.fraction("initializer_range", 0.02),
    }
    return ModelConfig(**settings | changed)


def settings_of(model: ModelConfig) -> dict[str, Any]:
    """Return BERT's settings of a configuration."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.hidden,
        "hidden_act": ACTIVATION_NAMES[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.context,
        "type_vocab_size": model.token_types,
        "layer_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": model.tied_embeddings,
    }


def body(model: ModelConfig, *, unread_positions: int = 0) -> Iterator[Entry]:
    """Yield the table of embeddings and layers."""
    yield Entry("embeddings.word_embeddings.weight", ("embeddings.tokens.weight",))
    yield Entry("embeddings.position_embeddings.weight", ("embeddings.positions.weight",), unread=unread_positions)
    yield Entry("embeddings.token_type_embeddings.weight", ("embeddings.types.weight",))
    yield from affine("embeddings.LayerNorm", "embeddings.norm")
    for n in range(model.num_layers):
        theirs, ours = f"encoder.layer.{n}", f"blocks.{n}"
        yield from affine(f"{theirs}.attention.self.query", f"{ours}.attention.q")
        yield from affine(f"{theirs}.attention.self.key", f"{ours}.attention.k")
        yield from affine(f"{theirs}.attention.self.value", f"{ours}.attention.v")
        yield from affine(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
        yield from affine(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
        yield from affine(f"{theirs}.intermediate.dense", f"{ours}.mlp.up")
        yield from affine(f"{theirs}.output.dense", f"{ours}.mlp.down")
        yield from affine(f"{theirs}.output.LayerNorm", f"{ours}.mlp_norm")


def language_head(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of the masked language model's head."""
    yield from affine("cls.predictions.transform.dense", "lm_head.transform.dense")
    yield from affine("cls.predictions.transform.LayerNorm", "lm_head.transform.norm")
    yield Entry("cls.predictions.bias", ("lm_head.bias",))
    if not model.tied_embeddings:
        yield Entry("cls.predictions.decoder.weight", ("lm_head.weight",))
        yield Entry("cls.predictions.decoder.bias", ("lm_head.bias",))  # the later one counts: transformers adds this


def pooler() -> Iterator[Entry]:
    """Yield the table of the pooler: a part of the body there."""
    return affine("pooler.dense", "pooler.dense")


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head."""
    if purpose == "classification":
        yield from affine("bert.pooler.dense", "head.pooler.dense")
    yield from affine("qa_outputs" if purpose == "question_answering" else "classifier", "head.dense")


BERT = Family(
    model_type="bert",
    title="BERT",
    prefix="bert.",
    classes={
        "BertModel": "hidden_states",
        "BertForMaskedLM": "masked_lm",
        "BertForPreTraining": "masked_lm",
        "BertForSequenceClassification": "classification",
        "BertForTokenClassification": "tagging",
        "BertForQuestionAnswering": "question_answering",
    },
    read=encoder,
    write=settings_of,
    settings={**POST_NORM, "activation": ("gelu", "gelu_tanh", "relu"), "token_types": range(1, 2**16)},
    heads=("transform", True),
    body=body,
    language_head=language_head,
    pooler=pooler,
    task_heads={
        "classification": TaskHead(pooling=("pooler",)),
        "tagging": TaskHead(),
        "question_answering": TaskHead(),
    },
    task_names=task_names,
    copies={
        "cls.predictions.decoder.weight": "embeddings.tokens.weight",
        "cls.predictions.decoder.bias": "lm_head.bias",
    },
    left_out=(r"cls\.seq_relationship\..*", r"(bert\.)?pooler\..*", r"(bert\.)?embeddings\.position_ids"),
)
