"""All settings of a fine-tuning run, section by section. Imports nothing heavy: `--help` needs it.

Read next: `table.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.config import setting
from minillm.model.config import ModelConfig

TaskName = Literal["single_label", "multi_label", "regression", "tagging", "question_answering", "prompt_answer"]
Pooling = Literal["auto", "cls", "mean", "last", "pooler"]


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
class HeadConfig:
    """What stands on the hidden states: the section [head]."""

    pooling: Pooling = setting(
        "auto", "a text's vector: cls, mean, last (real token), pooler (tanh layer on cls) or auto (see heads.py)"
    )
    dropout: float = setting(0.1, "probability of dropping an element of that vector")

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"head.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TaskModelConfig:
    """A backbone, a head and how texts reach them: what a checkpoint of a fine-tuned model keeps in config.json."""

    task: TaskFacts
    text: TextConfig
    backbone: ModelConfig
    head: HeadConfig
