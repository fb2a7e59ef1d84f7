"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT with other names in its heads, and positions that begin at 2.

The first two rows of its position table are of padding and of nothing: no pass reads them, and our model has them not.

Read next: `distilbert.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from minillm.checkpoint.hf import bert
from minillm.checkpoint.hf.entries import Entry, affine
from minillm.checkpoint.hf.family import Family, Purpose
from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig

UNREAD = 2  # pad_token_id + 1


def read(keys: Keys) -> ModelConfig:
    """Return the configuration that RoBERTa's settings describe."""
    keys.only("hidden_act", "gelu")  # the language model's head has it whatever the layers have
    keys.only("pad_token_id", UNREAD - 1)  # positions are counted from it
    rows = keys.whole("max_position_embeddings")
    if rows <= UNREAD:
        keys.wrong("max_position_embeddings", f"a number above {UNREAD}, of which as many rows are unread")
    return bert.encoder(keys, context=rows - UNREAD)


def write(model: ModelConfig) -> dict[str, Any]:
    """Return RoBERTa's settings of a configuration."""
    rows = {"max_position_embeddings": model.context + UNREAD, "pad_token_id": UNREAD - 1}
    return bert.settings_of(model) | rows


def language_head(model: ModelConfig) -> Iterator[Entry]:
    """Yield the table of the masked language model's head."""
    yield from affine("lm_head.dense", "lm_head.transform.dense")
    yield from affine("lm_head.layer_norm", "lm_head.transform.norm")
    yield Entry("lm_head.bias", ("lm_head.bias",))
    if not model.tied_embeddings:
        yield Entry("lm_head.decoder.weight", ("lm_head.weight",))
        yield Entry("lm_head.decoder.bias", ("lm_head.bias",))  # the later one counts: transformers adds this


def task_names(purpose: Purpose) -> Iterator[Entry]:
    """Yield the table of a task's head; that of classification holds BERT's pooler, under another name."""
    if purpose == "classification":
        yield from affine("classifier.dense", "head.pooler.dense")
        yield from affine("classifier.out_proj", "head.dense")
    else:
        yield from affine("qa_outputs" if purpose == "question_answering" else "classifier", "head.dense")


ROBERTA = Family(
    model_type="roberta",
    title="RoBERTa",
    prefix="roberta.",
    classes={
        "RobertaModel": "hidden_states",
        "RobertaForMaskedLM": "masked_lm",
        "RobertaForSequenceClassification": "classification",
        "RobertaForTokenClassification": "tagging",
        "RobertaForQuestionAnswering": "question_answering",
    },
    read=read,
    write=write,
    settings={**bert.POST_NORM, "activation": ("gelu",), "token_types": range(1, 2**16)},
    heads=("transform", True),
    body=functools.partial(bert.body, unread_positions=UNREAD),
    language_head=language_head,
    pooler=bert.pooler,
    task_heads=bert.BERT.task_heads,
    task_names=task_names,
    copies={"lm_head.decoder.weight": "embeddings.tokens.weight", "lm_head.decoder.bias": "lm_head.bias"},
    left_out=(r"(roberta\.)?pooler\..*", r"(roberta\.)?embeddings\.position_ids"),
)
