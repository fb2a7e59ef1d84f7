"""All settings of a fine-tuning run, section by section. Imports nothing heavy: `--help` needs it.

Read next: `table.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from minillm.config import setting
from minillm.errors import InputError
from minillm.finetune.adapters.config import AdapterConfig
from minillm.finetune.augmentation import AugmentationConfig
from minillm.finetune.regularisers.config import RegulariserConfig
from minillm.finetune.scope_config import ScopeConfig, check_together
from minillm.model.config import ModelConfig
from minillm.training.config import OptimConfig, Schedule, TrainConfig
from minillm.training.distributed_config import DistributedConfig

TaskName = Literal["single_label", "multi_label", "regression", "tagging", "question_answering", "prompt_answer"]
Pooling = Literal["auto", "cls", "mean", "last", "pooler"]
HeadLayer = Literal["none", "relu", "transform"]

UNUSED_IN_HEAD: Mapping[TaskName, tuple[str, ...]] = {
    "tagging": ("pooling",),
    "question_answering": ("pooling",),
    "prompt_answer": ("pooling", "layer", "bias"),  # its head is the model's own
}
MOST_EPOCHS = 1e9  # and evaluations in one: numbers of steps near the largest float would be none


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Where the labelled texts are, and which columns hold what: the section [data]."""

    train: str = setting("", "table to learn from: .csv, .tsv, .jsonl or .parquet")
    valid: str = setting("", "table that decides when to stop and which checkpoint is the best")
    test: str = setting("", "table that is read once, at the end, for the chosen checkpoint; empty: none")
    text_column: str | None = setting(None, "column of the text, by name or by number from 1; none: found by its name")
    pair_column: str | None = setting(None, "column of a second text; none: found by its name, or there is none")
    label_column: str | None = setting(None, "column of the label or target; none: found by its name")
    header: Literal["auto", "yes", "no"] = setting(
        "auto", "first line of .csv and .tsv: auto (names of columns where a known one is among them), yes or no"
    )
    quotes: Literal["auto", "yes", "no"] = setting(
        "auto", 'whether "..." encloses a cell: auto (in .csv yes, in .tsv no), yes or no'
    )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a text becomes token sequences: the section [text]. A checkpoint keeps it: `predict` reads texts alike."""

    max_length: int | None = setting(None, "tokens of a sequence, control symbols included; none: the model's context")
    long_texts: Literal["truncate", "windows"] = setting(
        "truncate", "what is longer: truncate (of a pair the longer text first), or windows whose answers are averaged"
    )
    overlap: int = setting(
        32,
        "windows: tokens that two neighbours share; tagging and question_answering always have windows, and share half "
        "of one at most",
    )

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 4:
            raise ValueError(f"text.max_length must be at least 4, got {self.max_length}")
        if self.overlap < 0:
            raise ValueError(f"text.overlap must not be negative, got {self.overlap}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learnt: the section [task]."""

    name: TaskName = setting(
        "single_label",
        "one label a text, several (multi_label), a number (regression), a tag a word (tagging), a part of a context "
        "(question_answering), or an answer that a decoder writes (prompt_answer)",
    )
    label_separator: str = setting("|", "multi_label: stands between the labels of a cell of .csv and .tsv")
    class_weights: Literal["none", "balanced"] = setting(
        "none", "balanced: a class counts rows / (classes * rows of it); the loss is divided by the sum of the weights"
    )
    label_smoothing: float = setting(0.0, "share of a label's probability spread over all labels, in [0, 1)")
    max_answer_tokens: int = setting(30, "question_answering: tokens of an answer at most")
    candidates: int = setting(5, "question_answering: answers that are kept, and shown by predict, for a question")
    no_answer_threshold: float = setting(
        0.0, "question_answering: no answer is given where that scores more than so much above the best one"
    )
    separator: str = setting("\n", "prompt_answer: text between prompt and answer")
    packing: bool = setting(False, "prompt_answer: several rows in a sequence, of which none sees another")
    exact_match: bool = setting(False, "prompt_answer: generate answers in evaluations, and count the right ones")
    max_new_tokens: int = setting(100, "prompt_answer: tokens of a generated answer at most")

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"task.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not self.label_separator:
            raise ValueError("task.label_separator must not be empty; take a text that stands in no label, such as |")
        if math.isnan(self.no_answer_threshold):  # infinite: never, or always, without an answer
            raise ValueError(f"task.no_answer_threshold must be a number, got {self.no_answer_threshold}")
        for name in ("max_answer_tokens", "candidates", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a checkpoint must keep of a task, beside its tensors, to make an equal one."""

    name: TaskName = setting("single_label", "see [task]")
    labels: tuple[str, ...] = setting((), "names of the labels, sorted; the number of a label is its place here")
    pairs: bool = setting(False, "whether an input is two texts")
    center: float = setting(0.0, "regression: mean of the training targets, in their unit")
    scale: float = setting(1.0, "regression: their standard deviation; the head gives (target - center) / scale")
    unanswerable: bool = setting(False, "question_answering: whether a question may have no answer in its context")
    separator: str = setting("\n", "prompt_answer: see [task]")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What of the pretrained model is another in fine-tuning: the section [backbone]."""

    dropout: float | None = setting(
        0.1, "probability of dropping an element of embedding and sub-layer outputs; none: as it was pretrained"
    )
    attention_dropout: float | None = setting(
        None, "probability of dropping an attention weight; none: as it was pretrained"
    )

    def __post_init__(self) -> None:
        for name in ("dropout", "attention_dropout"):
            if (value := getattr(self, name)) is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"backbone.{name} must be in [0, 1), got {value}")

    def applied(self, model: ModelConfig) -> ModelConfig:
        """Return a model's configuration with these settings."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(model, **given)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What stands on the hidden states: the section [head]."""

    pooling: Pooling = setting(
        "auto",
        "a text's vector, in tasks of one answer a text: cls, mean, last (real token), pooler (tanh layer on cls) or "
        "auto (see heads.py)",
    )
    layer: HeadLayer = setting(
        "none",
        "between that vector, or a token's, and the last linear layer: none, relu (DistilBERT's: dense, ReLU) or "
        "transform (ModernBERT's: dense, GELU, norm)",
    )
    bias: bool | None = setting(
        None, "a bias on each output; none: yes, but for a decoder that reads whole texts, as in transformers"
    )
    dropout: float = setting(0.1, "probability of dropping an element of that vector")

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"head.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TaskModelConfig:
    """Backbone, head, adapter and how texts reach them: what a checkpoint of a fine-tuned model has as config.json."""

    task: TaskFacts
    text: TextConfig
    backbone: ModelConfig
    head: HeadConfig
    adapter: AdapterConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(TrainConfig):
    """The run: [train] of pretraining with defaults for fine-tuning, and its length in epochs."""

    epochs: float = setting(4.0, "passes over the training table, a step each at least; train.max_steps overrides it")
    max_steps: int = setting(0, "optimiser steps of the whole run; 0: as many as train.epochs take")
    evals_per_epoch: float = setting(
        2.0, "evaluations of the validation table in an epoch; train.eval_every overrides it"
    )
    eval_every: int = setting(0, "steps between evaluations; 0: train.evals_per_epoch says it")
    checkpoint_every: int = setting(0, "steps between checkpoints; 0: one after each evaluation")
    best_by: str = setting(
        "auto", "figure of the evaluation that is best in the best checkpoint; auto: by the task, such as accuracy"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "evals_per_epoch"):
            if not 0.0 < getattr(self, name) <= MOST_EPOCHS:
                raise ValueError(f"train.{name} must be above 0 and at most {MOST_EPOCHS:g}, got {getattr(self, name)}")
        if self.max_steps == 0:
            dataclasses.replace(self, max_steps=1)  # checks all that is left
            return
        super().__post_init__()

    def resolved(self, sequences: int, best_metric: str) -> FinetuneTrainConfig:
        """Return the settings with every number of steps known.

        Args:
            sequences: of the training table.
            best_metric: what `best_by` auto is.
        """
        epoch = max(sequences / self.batch_size, 1.0)  # in steps
        max_steps = self.max_steps or max(1, math.ceil(self.epochs * epoch))
        evaluations = max(1, round(max_steps / epoch * self.evals_per_epoch))
        eval_every = self.eval_every or math.ceil(max_steps / evaluations)  # the last one falls on the last step
        return dataclasses.replace(
            self,
            max_steps=max_steps,
            eval_every=eval_every,
            checkpoint_every=self.checkpoint_every or eval_every,
            best_by=best_metric if self.best_by == "auto" else self.best_by,
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """The optimiser: [optim] of pretraining with defaults for fine-tuning."""

    learning_rate: float = setting(
        0.0, "peak learning rate; 0: what suits the weights and what learns of them, see learning_rate.py"
    )
    random_learning_rate: float = setting(
        0.0, "against_random: that of the model from random weights; 0: learning_rate, or what suits those weights"
    )
    schedule: Schedule = setting("linear", "after the warm-up: cosine, linear, wsd, inverse_sqrt or constant")
    min_learning_rate_ratio: float = setting(0.0, "learning rate at the end as a share of the peak, in [0, 1]")
    warmup_steps: int = setting(0, "steps of linear rise; 0: optim.warmup_fraction says it")
    warmup_fraction: float = setting(0.06, "share of the run's steps that the warm-up takes, in [0, 1)")
    weight_decay: float = setting(
        0.01, "decoupled decay (adamw, muon) or L2 term (sgd) of parameters with two axes or more"
    )
    beta2: float = setting(0.999, "adamw: decay of the squared gradient's running mean")
    left_open: ClassVar[tuple[str, ...]] = ("learning_rate",)

    def __post_init__(self) -> None:
        if not 0.0 <= self.random_learning_rate < float("inf"):
            raise ValueError(f"optim.random_learning_rate must be 0 or above, got {self.random_learning_rate}")
        if not 0.0 <= self.warmup_fraction < 1.0:
            raise ValueError(f"optim.warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        super().__post_init__()

    def resolved(self, max_steps: int) -> FinetuneOptimConfig:
        """Return the settings with the warm-up in steps, and both learning rates where one was given."""
        return dataclasses.replace(
            self,
            warmup_steps=self.warmup_steps or round(self.warmup_fraction * max_steps),
            random_learning_rate=self.random_learning_rate or self.learning_rate,
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides a fine-tuning run."""

    init: str = setting("", "run folder whose model and tokenizer this one begins with")
    preset: str = setting("", "in place of init: shape and kind of tokenizer by a preset, weights at random")
    random: bool = setting(False, "take only the shape of that model, and draw its weights at random")
    against_random: bool = setting(False, "train from random weights too: the report shows what pretraining bought")
    seeds: int = setting(1, "runs from train.seed, train.seed + 1, ...: mean, deviation, each, and their ensemble")
    data: TableConfig
    text: TextConfig
    task: TaskConfig
    backbone: BackboneConfig
    head: HeadConfig
    scope: ScopeConfig
    adapter: AdapterConfig | None = None
    regulariser: RegulariserConfig
    augmentation: AugmentationConfig
    train: FinetuneTrainConfig
    optim: FinetuneOptimConfig
    distributed: DistributedConfig

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if self.train.seed + self.seeds > 2**63:
            raise ValueError(f"train.seed and {self.seeds} seeds from it must be below 2**63, got {self.train.seed}")
        check_together(self.scope, self.adapter)
        for name in UNUSED_IN_HEAD.get(self.task.name, ()):
            if (value := getattr(self.head, name)) != getattr(HeadConfig(), name):
                raise ValueError(
                    f"head.{name} is {value}, and the head of {self.task.name} has no use for it; leave it out"
                )

    def check(self) -> None:
        """Raise InputError unless all is said that a run cannot do without."""
        if self.init and self.preset:
            raise InputError(f"minillm finetune takes one of RUN and --preset, got {self.init} and {self.preset}")
        for name, value, words in (
            ("RUN", self.init or self.preset, "the folder of a pretrained model (or --preset NAME: random weights)"),
            ("--train", self.data.train, "a table to learn from"),
            ("--valid", self.data.valid, "a table that decides which checkpoint is the best"),
        ):
            if not value:
                raise InputError(f"minillm finetune needs {name}: {words}")

    def resolved(self, sequences: int, best_metric: str) -> FinetuneConfig:
        """Return the configuration of a run whose training table is known: every number of steps is there."""
        train = self.train.resolved(sequences, best_metric)
        return dataclasses.replace(self, train=train, optim=self.optim.resolved(train.max_steps))
