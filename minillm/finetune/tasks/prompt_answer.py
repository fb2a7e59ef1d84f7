r"""Prompt and answer: a decoder goes on learning to predict the next token, but is asked for those of the answer alone.

    text      bos | prompt | separator | answer | eos            the template; a row has one prompt and one answer
    tokens    bos   p1   p2   sep   a1    a2                     the last one, eos, is predicted and never read
    targets   .     .    .    a1    a2    eos                    of each place the next token, as in causal LM; . = -100
    loss      - sum over targets of log p(target)                through the decoder's own output weight: no new head

Prompt (with its separator) and answer are encoded apart: so the prompt's tokens are those that generation will begin
with, and no token is half prompt, half answer. Of what is too long for `text.max_length` the prompt loses its
beginning, but keeps half of the room; then the answer loses its end, and with it the eos.

`task.packing` lays several rows in one sequence, of which none sees another (their positions begin anew): the same loss
and less padding. `task.exact_match` generates an answer for every row of an evaluation, greedily, and counts those that
are the true one but for white space at the ends; that takes a pass of the model per new token.

Read next: `minillm/generate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from minillm_kernels import cross_entropy
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm.data.batch import IGNORED, Batch
from minillm.errors import InputError
from minillm.evaluate import inference
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskName
from minillm.finetune.encoding import Sequences, TextEncoder, nothing_left
from minillm.finetune.heads import HiddenStates
from minillm.finetune.table import Columns, Table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.base import Task
from minillm.generate import GenerateConfig, Generation, generate
from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.loss import Loss
from minillm.objectives.protocol import prediction_loss
from minillm.tokenizer.base import Tokenizer

GENERATED_AT_ONCE = 16  # prompts; of near lengths, so that few steps are padding


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What generation needs: `Sequences.details` of this task.

    asked: of each row the prompt with its separator, cut so that there is room for an answer.
    answers: None: the table is not labelled.
    """

    tokenizer: Tokenizer
    prompts: Sequence[str]
    asked: Sequence[str]
    answers: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswers:
    """What a model says to N prompts.

    generations: None where none were asked for: an evaluation without `task.exact_match`.
    answers: the true ones; None: the table is not labelled.
    loss: nats per token of the answers; None where there are none.
    """

    prompts: Sequence[str]
    generations: Sequence[Generation] | None
    answers: Sequence[str] | None
    loss: float | None


class PromptAnswer(Task):
    """Answers to prompts, written by a decoder; `minillm.finetune.tasks.base.Task` says what each method is for."""

    name: ClassVar[TaskName] = "prompt_answer"
    needs_output_weight: ClassVar[bool] = True
    figure_names: tuple[str, ...] = ("perplexity",)
    best_metric: str = "loss"
    column_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("prompt", "instruction", "question", "input", "source", "text"),
        "label": ("answer", "completion", "response", "output", "target"),
    }

    def __init__(self, config: TaskConfig, facts: TaskFacts) -> None:
        super().__init__(config, facts)
        self.objective = ObjectiveConfig(label_smoothing=config.label_smoothing)
        if config.exact_match:
            self.figure_names = ("perplexity", "exact_match")

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task; a checkpoint keeps its separator."""
        if config.class_weights != "none":
            raise InputError("task.class_weights is of single_label; leave it out for prompt_answer")
        return cls(config, TaskFacts(name=cls.name, separator=config.separator))

    def make_head(self, config: HeadConfig, backbone: ModelConfig) -> nn.Module:
        """Return the head that gives hidden states as they are.

        Raises:
            InputError: an encoder, which cannot write.
        """
        if backbone.kind != "decoder":
            raise InputError("prompt_answer needs a decoder, this model is an encoder; pretrain one with causal_lm")
        return HiddenStates()

    def encode(self, table: Table, columns: Columns, encoder: TextEncoder, *, labelled: bool) -> Sequences:
        """Return prompt and answer of each row as one sequence with a target for each token of the answer.

        Without labels a sequence is the prompt alone.

        Raises:
            InputError: an empty prompt or answer, or a row of which nothing reaches the model; its place is named.
        """
        prompts = table.texts(columns.text)
        answers = table.texts(columns.label) if labelled and columns.label is not None else None
        tokenizer = encoder.tokenizer
        before, eos = encoder.single.before, tokenizer.specials.eos
        room = encoder.max_length + labelled - len(before)  # an answer's last token is predicted, not read
        asked = [prompt + self.facts.separator for prompt in prompts]
        first = tokenizer.encode_batch(asked)
        ending = [] if eos is None else [eos]  # whatever the frame: generation stops there
        second = [[*ids, *ending] for ids in tokenizer.encode_batch(answers or [])] or [[] for _ in prompts]
        parts: list[tuple[list[int], list[int]]] = []
        lost: list[int] = []
        for row, (prompt, answer) in enumerate(zip(first, second, strict=True)):
            if len(before) + len(prompt) + len(answer) <= labelled:
                raise nothing_left(table.place(row), prompts[row], what="prompt")
            kept = min(len(prompt), max(room - len(answer), room // 2))
            lost.append(len(prompt) - kept + max(0, kept + len(answer) - room))
            answer = answer[: room - kept]
            whole = [*before, *prompt[len(prompt) - kept :], *answer]
            following = [IGNORED] * (len(whole) - len(answer)) + answer
            parts.append((whole[: len(whole) - labelled], following[1:] if labelled else following))
        most = max(room - self.config.max_new_tokens, room // 2)  # tokens of a prompt that an answer is generated to
        short = [len(prompt) - most for prompt in first if len(prompt) > most]
        notes: tuple[str, ...] = ()
        if short and (self.config.exact_match or not labelled):
            notes = (
                f"{len(short):,} of {len(first):,} prompts are answered without the first of their tokens, "
                f"{sum(short):,} in all: {most:,} fit beside an answer; lower task.max_new_tokens "
                f"({self.config.max_new_tokens:,})",
            )
        rows = packed([len(tokens) for tokens, _ in parts], encoder.max_length if self.config.packing else 0)
        targets = [target for row in rows for place in row for target in parts[place][1]]
        return Sequences.of(
            [[token for place in row for token in parts[place][0]] for row in rows],
            [row[0] for row in rows],
            lost if labelled else (),
            segments=_segments(rows, parts) if self.config.packing else None,
            token_targets=np.array(targets, dtype=np.int64) if labelled else None,
            details=Prompts(
                tokenizer=tokenizer,
                prompts=prompts,
                asked=[shortened(tokenizer, text, most) for text in asked],
                answers=answers,
            ),
            notes=notes,
        )

    def outputs(self, model: TaskModel, batch: Batch) -> Tensor:
        """Return the logits at the N places that have a target, (N, V) float32; `step` does without them."""
        assert batch.targets is not None
        hidden = model(batch.tokens, **batch.model_inputs())  # (B, T, C)
        return model.backbone.project(hidden[batch.targets != IGNORED]).float()

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed cross-entropy of the answers' tokens, in nats, and their number."""
        assert batch.targets is not None
        targets = batch.targets[batch.targets != IGNORED]  # (N,)
        total = cross_entropy(outputs, targets, label_smoothing=self.config.label_smoothing, reduction="sum")
        return Loss(total=total, count=(targets != IGNORED).sum())

    def step(self, model: TaskModel, batch: Batch) -> Loss:
        """Return the loss of a (micro-)batch, as `loss` of `outputs`, but the logits exist a chunk at a time."""
        return self._loss(model, batch, self.objective)

    def _loss(self, model: TaskModel, batch: Batch, objective: ObjectiveConfig) -> Loss:
        return prediction_loss(model.backbone, model(batch.tokens, **batch.model_inputs()), batch, objective)

    def predict(
        self, model: TaskModel, batches: Iterable[tuple[NDArray[np.int64], Batch]], sequences: Sequences
    ) -> GeneratedAnswers:
        """Return the loss of the true answers; generated ones where there are none, or `task.exact_match` says so."""
        prompts: Prompts = sequences.details
        total, count = 0.0, 0
        if prompts.answers is not None:
            with inference(model):
                for _, batch in batches:
                    loss = self._loss(model, batch.to(model.device), ObjectiveConfig())
                    total, count = total + float(loss.total), count + int(loss.count)
        asked = prompts.answers is None or self.config.exact_match
        return GeneratedAnswers(
            prompts=prompts.prompts,
            generations=self._generate(model, prompts) if asked else None,
            answers=prompts.answers,
            loss=total / count if count else None,
        )

    def _generate(self, model: TaskModel, prompts: Prompts) -> list[Generation]:
        """Return the likeliest continuation of each prompt, token by token."""
        assert isinstance(model.backbone, Decoder)
        config = GenerateConfig(max_tokens=self.config.max_new_tokens, temperature=0.0)
        order = sorted(range(len(prompts.asked)), key=lambda row: len(prompts.asked[row]))
        found: dict[int, Generation] = {}
        for begin in range(0, len(order), GENERATED_AT_ONCE):
            rows = order[begin : begin + GENERATED_AT_ONCE]
            texts = [prompts.asked[row] for row in rows]
            found |= zip(rows, generate(model.backbone, prompts.tokenizer, texts, config), strict=True)
        return [found[row] for row in range(len(order))]

    def figures(self, predictions: GeneratedAnswers) -> Mapping[str, float]:
        """Return the loss in nats per token of the answers, its perplexity and, on request, the exact match."""
        assert predictions.loss is not None
        figures = {"loss": predictions.loss, "perplexity": math.exp(min(predictions.loss, 700.0))}
        if predictions.generations is None:
            return figures
        assert predictions.answers is not None
        pairs = zip(predictions.generations, predictions.answers, strict=True)
        right = sum(generation.text.strip() == answer.strip() for generation, answer in pairs)
        return figures | {"exact_match": right / len(predictions.answers)}

    def answers(self, predictions: GeneratedAnswers, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield the `prompt`, the `answer`, and why it ended: `stop` as in `Generation`. It is greedy: no temperature.

        Raises:
            ValueError: nothing was generated; set `task.exact_match`.
        """
        if predictions.generations is None:
            raise ValueError("nothing was generated from a labelled table without task.exact_match; set it")
        for prompt, generation in zip(predictions.prompts, predictions.generations, strict=True):
            yield {"prompt": prompt, "answer": generation.text, "stop": generation.stop}


def packed(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Return which rows share a sequence of `room` tokens: in order, each with those before it while there is room.

    >>> packed([3, 3, 4, 1, 6], room=6)
    [[0, 1], [2, 3], [4]]
    """
    shared: list[list[int]] = []
    left = 0
    for row, size in enumerate(sizes):
        if size <= left:
            shared[-1].append(row)
        else:
            shared.append([row])
            left = room
        left -= size
    return shared


def _segments(rows: Sequence[Sequence[int]], parts: Sequence[tuple[list[int], list[int]]]) -> NDArray[np.int32]:
    """Return the number of each token's part in its sequence, from 0."""
    return np.array([number for row in rows for number, place in enumerate(row) for _ in parts[place][0]], np.int32)


def shortened(tokenizer: Tokenizer, text: str, most: int) -> str:
    """Return the end of a text that has `most` tokens at most, beginning where a token of the text does."""
    tokens, spans = tokenizer.encode_with_offsets(text)
    cut = text
    for start, _ in spans[max(0, len(tokens) - most) :]:
        cut = text[start:]
        if len(tokenizer.encode(cut)) <= most:  # by itself the end may have another token or two
            break
    return cut
