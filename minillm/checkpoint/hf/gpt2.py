"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, tanh GELU; its linear layers are stored (in, out).

Read next: `layers.py`, then `llama.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.checkpoint.hf.bert import ACTIVATION_NAMES, ACTIVATIONS
from minillm.checkpoint.hf.entries import Entry, affine, output_weight
from minillm.checkpoint.hf.family import Family, Purpose, TaskHead
from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig


def read(keys: Keys) -> ModelConfig:
    """Return the configuration that GPT-2's settings describe; its three dropouts are one and attention's here."""
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.flag("reorder_and_upcast_attn", False)  # the order of two products, and their precision: not what they are
    for name in ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"):
        keys.ignore(name)  # of a head that is refused
    keys.share("summary_first_dropout", 0.1)
    keys.share("embd_pdrop", 0.1)
    keys.share("classifier_dropout", 0.1)
    keys.share("hidden_dropout", 0.1)
    width = keys.whole("n_embd")
    return ModelConfig(
        kind="decoder",
        vocab_size=keys.whole("vocab_size"),
        context=keys.whole("n_positions"),
        num_layers=keys.layers("n_layer"),
        width=width,
        num_heads=keys.whole("n_head"),
        mlp_width=keys.whole("n_inner", None) or 4 * width,
        norm_eps=keys.fraction("layer_norm_epsilon", 1e-5),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tied_embeddings=keys.flag("tie_word_embeddings", True),
        dropout=keys.share("resid_pdrop", 0.1),
        attention_dropout=keys.share("attn_pdrop", 0.1),
        init_std=keys.fraction("initializer_range", 0.02),
    )


def write(model: ModelConfig) -> dict[str, Any]:
    """Return GPT-2's settings of a configuration."""
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.context,
        "n_ctx": model.context,  # llama.cpp's converter reads it and nothing else
        "n_embd": model.width,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.hidden,
        "activation_function": ACTIVATION_NAMES[model.activation],
        "layer_norm_epsilon": model.norm_eps,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.attention_dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
    }


def body(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of embeddings, layers and the last norm."""
    yield Entry("wte.weight", ("embeddings.tokens.weight",))
    yield Entry("wpe.weight", ("embeddings.positions.weight",))
    for n in range(model.num_layers):
        theirs, ours = f"h.{n}", f"blocks.{n}"
        q, k, v = (f"{ours}.attention.{name}" for name in "qkv")
        yield from affine(f"{theirs}.ln_1", f"{ours}.attention_norm")
        yield from affine(f"{theirs}.attn.c_attn", q, k, v, transposed=True)
        yield from affine(f"{theirs}.attn.c_proj", f"{ours}.attention.output", transposed=True)
        yield from affine(f"{theirs}.ln_2", f"{ours}.mlp_norm")
        yield from affine(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up", transposed=True)
        yield from affine(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down", transposed=True)
    yield from affine("ln_f", "final_norm")


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head."""
    if purpose == "classification":
        yield from affine("score", "head.dense", bias=False)
    else:
        yield from affine("qa_outputs" if purpose == "question_answering" else "classifier", "head.dense")


GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
    prefix="transformer.",
    classes={
        "GPT2Model": "hidden_states",
        "GPT2LMHeadModel": "causal_lm",
        "GPT2ForSequenceClassification": "classification",
        "GPT2ForTokenClassification": "tagging",
        "GPT2ForQuestionAnswering": "question_answering",
    },
    read=read,
    write=write,
    settings={
        "kind": ("decoder",),
        "norm": ("layer_norm",),
        "norm_position": ("pre",),
        "position": ("learned",),
        "activation": ("gelu", "gelu_tanh", "relu"),
        "bias": (True,),
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
    left_out=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
)
