"""What a family of models is made of: its settings, its table of names, its heads.

A folder's `architectures` says what stands on the hidden states; that is its purpose here:

    hidden_states  nothing     masked_lm, causal_lm  the output weight     classification, tagging, question_answering

Read next: `bert.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minillm.checkpoint.hf.entries import Entry
from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig

Purpose = Literal["hidden_states", "masked_lm", "causal_lm", "classification", "tagging", "question_answering"]
TASK_PURPOSES: tuple[Purpose, ...] = ("classification", "tagging", "question_answering")
BACKBONE = "backbone."  # before the names of a model that has a task's head

Allowed = tuple[Any, ...] | range | None  # values of a setting
ANY = None  # whatever it is
# What a family has unless it says otherwise: sizes and training as they come, the rest plain.
PLAIN: Mapping[str, Allowed] = {
    **dict.fromkeys(("vocab_size", "context", "num_layers", "width", "num_heads", "mlp_width", "norm_eps"), ANY),
    **dict.fromkeys(("init_std", "dropout", "attention_dropout", "tied_embeddings", "pooler", "rotary_theta"), ANY),
    **dict.fromkeys(("num_kv_heads", "head_width", "rotary_theta_local", "window"), (None,)),
    **dict.fromkeys(("attention_softcap", "logit_softcap"), (None,)),
    **dict.fromkeys(("qk_norm", "embedding_norm"), (False,)),
    "token_types": (0,),
    "global_every": (1,),
}


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A head for a task as a family has it; settings of the section [head].

    pooling: which of the hidden states it reads, the first one where nothing is said; empty: every token's.
    layer: what stands between them and the last linear layer.
    bias: whether that has a bias.
    """

    pooling: tuple[str, ...] = ()
    layer: str = "none"
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`.

    title: as people write it. prefix: before the names of the body in a model with a head.
    classes: names of transformers' classes -> purpose; the first one of a purpose is written.
    read: settings -> ModelConfig of the body with the head of its language model.
    write: the other way round.
    settings: what of ModelConfig must have one of a few values; see PLAIN for the rest. heads: likewise `head` and
        `head_bias` of its language model.
    body: the table of names of all below the head.
    language_head: that of the language model's head. pooler: that of BERT's pooler, where it has one.
    task_heads: purpose -> head. task_names: purpose -> its table.
    dropout_key: the setting of the dropout in a task's head.
    copies: names that older files have of what is stored once -> our name of it. They must be equal.
    left_out: patterns of names that are read past: buffers, and heads that no class here has.
    question_prefix: `prefix` in a model for question answering, where it is another.
    """

    model_type: str
    title: str
    prefix: str
    classes: Mapping[str, Purpose]
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    settings: Mapping[str, Allowed]
    heads: tuple[str, bool]
    body: Callable[[ModelConfig], Iterator[Entry]]
    language_head: Callable[[ModelConfig], Iterator[Entry]]
    task_heads: Mapping[Purpose, TaskHead]
    task_names: Callable[[Purpose], Iterator[Entry]]
    pooler: Callable[[], Iterator[Entry]] | None = None
    dropout_key: str = "classifier_dropout"
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: Sequence[str] = ()
    question_prefix: str | None = None

    def class_for(self, purpose: Purpose) -> str | None:
        """Return the name of transformers' class for a purpose, None where it has none."""
        return next((name for name, use in self.classes.items() if use == purpose), None)

    def prefix_for(self, purpose: Purpose) -> str:
        """Return what transformers writes before the names of the body."""
        if purpose == "question_answering" and self.question_prefix is not None:
            return self.question_prefix
        return "" if purpose == "hidden_states" else self.prefix

    def entries(self, model: ModelConfig, purpose: Purpose, *, prefix: str) -> list[Entry]:
        """Return the whole table of a model, the body's names in the file behind `prefix`."""
        inside = BACKBONE if purpose in TASK_PURPOSES else ""
        body = [
            dataclasses.replace(e, theirs=prefix + e.theirs, ours=tuple(inside + name for name in e.ours))
            for e in self.body(model)
        ]
        if model.pooler and self.pooler is not None:
            body += [dataclasses.replace(e, theirs=prefix + e.theirs) for e in self.pooler()]
        if purpose in TASK_PURPOSES:
            return body + list(self.task_names(purpose))
        return body if model.head == "none" else body + list(self.language_head(model))

    def obstacles(self, model: ModelConfig) -> list[str]:
        """Return what a model has that this family has not, a phrase each; none: it can be written."""
        values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        if model.kv_heads == model.num_heads:
            values["num_kv_heads"] = None
        if model.head_dim * model.num_heads == model.width:
            values["head_width"] = None
        if model.window is None:
            values |= {"global_every": 1, "rotary_theta_local": None}
        wanted: dict[str, Allowed] = {**PLAIN, **self.settings, "head": ANY, "head_bias": ANY}
        if model.head != "none":
            wanted |= {"head": (self.heads[0],), "head_bias": (self.heads[1],)}
        return [
            f"model.{name} is {_shown(values[name])}, not {_choices(allowed)}"
            for name, allowed in wanted.items()
            if allowed is not None and values[name] not in allowed
        ]


def _choices(allowed: tuple[Any, ...] | range) -> str:
    """Return allowed values as words."""
    return f"{allowed.start} or more" if isinstance(allowed, range) else " or ".join(map(_shown, allowed))


def _shown(value: Any) -> str:
    """Return a value as a configuration file has it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
