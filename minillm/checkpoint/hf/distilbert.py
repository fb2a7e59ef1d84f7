"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token types and pooler, and with names of its own.

Read next: `modernbert.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.checkpoint.hf.bert import ACTIVATIONS, POST_NORM
from minillm.checkpoint.hf.entries import Entry, affine
from minillm.checkpoint.hf.family import Family, Purpose, TaskHead
from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig

EPS = 1e-12  # of every norm; not among the settings
ACTIVATION = {name: ACTIVATIONS[name] for name in ("gelu", "relu")}  # the two that it knows


def read(keys: Keys) -> ModelConfig:
    """Return the configuration that DistilBERT's settings describe."""
    keys.flag("sinusoidal_pos_embds", False)  # how the table was drawn; its values are in the file
    keys.only("pruned_heads", {})
    keys.share("qa_dropout", 0.1)
    keys.share("seq_classif_dropout", 0.2)  # read with the head
    return ModelConfig(
        kind="encoder",
        vocab_size=keys.whole("vocab_size"),
        context=keys.whole("max_position_embeddings"),
        num_layers=keys.layers("n_layers"),
        width=keys.whole("dim"),
        num_heads=keys.whole("n_heads"),
        mlp_width=keys.whole("hidden_dim"),
        norm_position="post",
        norm_eps=EPS,
        activation=keys.choice("activation", ACTIVATION, "gelu"),
        embedding_norm=True,
        head="transform",
        head_bias=True,
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        dropout=keys.share("dropout", 0.1),
        attention_dropout=keys.share("attention_dropout", 0.1),
        init_std=keys.fraction("initializer_range", 0.02),
    )


def write(model: ModelConfig) -> dict[str, Any]:
    """Return DistilBERT's settings of a configuration."""
    return {
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "sinusoidal_pos_embds": False,
        "n_layers": model.num_layers,
        "n_heads": model.num_heads,
        "dim": model.width,
        "hidden_dim": model.hidden,
        "activation": model.activation,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
    }


def body(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of embeddings and layers."""
    yield Entry("embeddings.word_embeddings.weight", ("embeddings.tokens.weight",))
    yield Entry("embeddings.position_embeddings.weight", ("embeddings.positions.weight",))
    yield from affine("embeddings.LayerNorm", "embeddings.norm")
    for n in range(model.num_layers):
        theirs, ours = f"transformer.layer.{n}", f"blocks.{n}"
        for name, own in (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v"), ("out_lin", "output")):
            yield from affine(f"{theirs}.attention.{name}", f"{ours}.attention.{own}")
        yield from affine(f"{theirs}.sa_layer_norm", f"{ours}.attention_norm")
        yield from affine(f"{theirs}.ffn.lin1", f"{ours}.mlp.up")
        yield from affine(f"{theirs}.ffn.lin2", f"{ours}.mlp.down")
        yield from affine(f"{theirs}.output_layer_norm", f"{ours}.mlp_norm")


def language_head(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of the masked language model's head."""
    yield from affine("vocab_transform", "lm_head.transform.dense")
    yield from affine("vocab_layer_norm", "lm_head.transform.norm")
    yield Entry("vocab_projector.bias", ("lm_head.bias",))
    if not model.tied_embeddings:
        yield Entry("vocab_projector.weight", ("lm_head.weight",))


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head; that of classification has a layer with ReLU."""
    if purpose == "classification":
        yield from affine("pre_classifier", "head.layer.dense")
    yield from affine("qa_outputs" if purpose == "question_answering" else "classifier", "head.dense")


DISTILBERT = Family(
    model_type="distilbert",
    title="DistilBERT",
    prefix="distilbert.",
    classes={
        "DistilBertModel": "hidden_states",
        "DistilBertForMaskedLM": "masked_lm",
        "DistilBertForSequenceClassification": "classification",
        "DistilBertForTokenClassification": "tagging",
        "DistilBertForQuestionAnswering": "question_answering",
    },
    read=read,
    write=write,
    settings={**POST_NORM, "activation": tuple(ACTIVATION.values()), "norm_eps": (EPS,)},
    heads=("transform", True),
    body=body,
    language_head=language_head,
    task_heads={
        "classification": TaskHead(pooling=("cls",), layer="relu"),
        "tagging": TaskHead(),
        "question_answering": TaskHead(),
    },
    task_names=task_names,
    dropout_key="seq_classif_dropout",
    copies={"vocab_projector.weight": "embeddings.tokens.weight"},
    left_out=(r"(distilbert\.)?embeddings\.position_ids",),
)
