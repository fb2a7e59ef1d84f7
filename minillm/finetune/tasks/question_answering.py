r"""Extractive question answering: the answer to a question is a part of a context, character for character.

    encoder   cls question sep context sep           places   0 .. T - 1
    decoder   bos question eos context eos          an imported one that ends with the context gets an eos there
    p(start = t)  softmax over places of z_start,   p(stop = t) of z_stop,   z (2, T) from a dense layer on each token
    loss          - log p(first token of the answer) - log p(last token)     a sum, and 2 targets a sequence

A context above the model's length goes through windows that share `text.overlap` tokens, half a window at most (what
BERT's code calls doc_stride is the rest: tokens from one window's begin to the next's); a question keeps half of the
room. (`text.long_texts` is of other tasks.) A window without the whole answer has the place of no answer as its target,
twice: cls, or a decoder's last eos, which is the token there that has seen both texts. In a decoder a start is chosen
before what follows is seen; take an encoder where there is one.

    score(i, j) = z_start[i] + z_stop[j],   i <= j < i + task.max_answer_tokens, both in the context
    margin      = z_start[none] + z_stop[none], the lowest of the windows,  -  the highest score of all windows

All such pairs are looked at; the best of all windows are the candidates. Where the training table had questions without
an answer, one whose margin is above `task.no_answer_threshold` is left without. An answer is context[start:stop], from
the first character of token i to the last one of token j but for white space at its ends.

Source: Devlin et al. (2019), arXiv:1810.04805; Rajpurkar et al. (2018), arXiv:1806.03822, for no answer.

Read next: `answers.py`, then `prompt_answer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from minillm_kernels import cross_entropy
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from minillm.data.batch import IGNORED, Batch
from minillm.errors import InputError
from minillm.evaluate import inference
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskName
from minillm.finetune.encoding import Sequences, TextEncoder, nothing_left, window_starts
from minillm.finetune.heads import TokenHead
from minillm.finetune.squad import read_squad
from minillm.finetune.table import Columns, Table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.answers import best_threshold, exact_match, f1
from minillm.finetune.tasks.base import Task
from minillm.model.config import ModelConfig
from minillm.objectives.loss import Loss
from minillm.tokenizer.base import Span

START, STOP = range(2)
PADDED = -1e9  # the logit of a place in padding: no infinity, whose difference with itself is not a number


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A part of a context: text == context[start : start + len(text)]."""

    text: str
    start: int


@dataclass(frozen=True, kw_only=True)
class ContextWindows:
    """Where the tokens of each sequence stand in its context: `Sequences.details` of this task.

    contexts: of the rows. answers: of the rows, empty where there is none; None: the table is not labelled.
    first: (S,) place of a sequence's first token of the context.
    spans: (S) arrays (n, 2), characters start and stop of the context's n tokens in the sequence.
    none: (S,) the place that stands for no answer.
    """

    contexts: Sequence[str]
    answers: Sequence[Sequence[Answer]] | None
    first: Sequence[int]
    spans: Sequence[NDArray[np.int64]]
    none: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An answer that a model thinks of; score: z_start + z_stop."""

    text: str
    start: int
    stop: int
    score: float


@dataclass(frozen=True, kw_only=True)
class AnswerPredictions:
    """What a model says about N questions.

    candidates: of each question, different ones, the best first; there is one at least, as `encode` takes no context
        without a token.
    none: (N,) the score of no answer.
    truths: the texts of the true answers; None: the table is not labelled.
    loss: nats per target; None where there are none.
    """

    candidates: Sequence[Sequence[Candidate]]
    none: Sequence[float]
    truths: Sequence[Sequence[str]] | None
    loss: float | None

    def margin(self, row: int) -> float:
        """Return the score of no answer minus that of the best candidate."""
        return self.none[row] - self.candidates[row][0].score


class QuestionAnswering(Task):
    """The part of a context that answers; `minillm.finetune.tasks.base.Task` says what each method is for."""

    name: ClassVar[TaskName] = "question_answering"
    figure_names: tuple[str, ...] = ("exact", "f1")
    best_metric: str = "f1"
    column_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("question", "text"),
        "pair": ("context", "passage", "paragraph", "pair"),
        "label": ("answers", "answer"),
    }
    readers: ClassVar[Mapping[str, Callable[[Path], Table]]] = {".json": read_squad}

    def __init__(self, config: TaskConfig, facts: TaskFacts) -> None:
        super().__init__(config, facts)
        if facts.unanswerable:
            self.figure_names = ("exact", "f1", "no_answer", "best_f1", "best_threshold")

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task; the training table says whether a question may be left without an answer."""
        if config.class_weights != "none" or config.label_smoothing:
            raise InputError("task.class_weights and label_smoothing are of labels; leave them out for answers")
        answers = read_answers(table, columns)
        if not any(answers):
            raise InputError(f"{table.path} has no question with an answer; give some")
        return cls(config, TaskFacts(name=cls.name, pairs=True, unanswerable=not all(answers)))

    def make_head(self, config: HeadConfig, backbone: ModelConfig) -> nn.Module:
        """Return a new head with two numbers a token."""
        return TokenHead(config, backbone, 2)

    def encode(self, table: Table, columns: Columns, encoder: TextEncoder, *, labelled: bool) -> Sequences:
        """Return question and context of each row, one sequence or several (windows), with targets (S, 2) if labelled.

        Targets are places counted from a sequence's first token.

        Raises:
            InputError: a context of which the tokenizer leaves nothing; the text names the place.
        """
        contexts = table.texts(_context(table, columns))
        answers = read_answers(table, columns) if labelled else None
        after = _behind(encoder)
        room = encoder.room(pair=True) + len(encoder.pair.after) - len(after)
        sequences: list[list[int]] = []
        types: list[int] = []
        rows, lost, places, targets, spans, nones = [], [], [], [], [], []
        inside_tokens = too_long = 0
        for row, question in enumerate(encoder.tokenizer.encode_batch(table.texts(columns.text))):
            kept = question[: room // 2]
            lost.append(len(question) - len(kept))
            head = [*encoder.pair.before, *kept, *encoder.pair.between]
            context, edges = encoder.tokenizer.encode_with_offsets(contexts[row])
            where = np.array(edges, dtype=np.int64).reshape(-1, 2)  # (tokens of the context, 2)
            if not any(trimmed(contexts[row], int(start), int(stop)) for start, stop in where):
                raise nothing_left(table.place(row), contexts[row], what="context")
            wanted = None
            if answers and answers[row]:
                answer = answers[row][0]
                wanted = covering_tokens(where, answer.start, answer.start + len(answer.text))
                reached = trimmed(contexts[row], int(where[wanted[0], 0]), int(where[wanted[1], 1]))
                inside_tokens += reached != trimmed(contexts[row], answer.start, answer.start + len(answer.text))
            size = room - len(kept)
            found = False
            for begin in window_starts(len(context), size, min(encoder.config.overlap, size // 2)):
                window = context[begin : begin + size]
                sequence = [*head, *window, *after]
                none = len(sequence) - 1 if encoder.causal else 0
                first, last = none, none
                if wanted is not None and begin <= wanted[0] and wanted[1] < begin + len(window):
                    first, last = (len(head) + place - begin for place in wanted)
                    found = True
                sequences.append(sequence)
                kinds = encoder.pair.types_of(len(kept), len(window))
                types += kinds + kinds[-1:] * (len(sequence) - len(kinds))
                rows.append(row)
                places.append(len(head))
                spans.append(where[begin : begin + size])
                targets.append((first, last))
                nones.append(none)
            too_long += wanted is not None and not found
        return Sequences.of(
            sequences,
            rows,
            lost,
            token_types=np.array(types, dtype=np.int8) if encoder.typed else None,
            targets=np.array(targets, dtype=np.int64) if labelled else None,
            details=ContextWindows(contexts=contexts, answers=answers, first=places, spans=spans, none=nones),
            notes=tuple(_notes(table.path, inside_tokens, too_long)),
        )

    def outputs(self, model: TaskModel, batch: Batch) -> Tensor:
        """Return the logits of every place as a start and as a stop, (B, 2, T) float32, -1e9 in padding."""
        logits = model(batch.tokens, **batch.model_inputs()).transpose(1, 2)  # (B, 2, T)
        return logits.masked_fill(~batch.real()[:, None, :], PADDED)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed cross-entropy of starts and stops, in nats, and their number: two a row."""
        assert batch.targets is not None
        targets = batch.targets  # (B, 2), from the first real token on
        if batch.starts is not None:
            targets = targets.where(targets == IGNORED, targets + batch.starts[:, None])
        total = cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")
        return Loss(total=total, count=(targets != IGNORED).sum())

    def predict(
        self, model: TaskModel, batches: Iterable[tuple[NDArray[np.int64], Batch]], sequences: Sequences
    ) -> AnswerPredictions:
        """Return the best candidates of every question; `task.candidates` a row are held."""
        windows: ContextWindows = sequences.details
        found: list[dict[Span, float]] = [{} for _ in windows.contexts]
        none = [math.inf] * len(found)
        total, count = 0.0, 0
        with inference(model):
            for places, batch in batches:
                batch = batch.to(model.device)
                outputs = self.outputs(model, batch)
                if batch.targets is not None:
                    loss = self.loss(outputs, batch)
                    total, count = total + float(loss.total), count + int(loss.count)
                for logits, place in zip(outputs.cpu().numpy(), places, strict=True):
                    row, first, spans = int(sequences.rows[place]), windows.first[place], windows.spans[place]
                    none[row] = min(none[row], float(logits[:, windows.none[place]].sum()))
                    self._look(logits[:, first : first + len(spans)], spans, windows.contexts[row], found[row])
        truths = None
        if windows.answers is not None:
            truths = [[answer.text for answer in answers] for answers in windows.answers]
        return AnswerPredictions(
            candidates=[
                [
                    Candidate(text=context[start:stop], start=start, stop=stop, score=score)
                    for (start, stop), score in sorted(scores.items(), key=lambda item: -item[1])
                ][: self.config.candidates]
                for context, scores in zip(windows.contexts, found, strict=True)
            ],
            none=none,
            truths=truths,
            loss=total / count if count else None,
        )

    def _look(
        self, logits: NDArray[np.float32], spans: NDArray[np.int64], context: str, found: dict[Span, float]
    ) -> None:
        """Add the best answers of a window to those found; logits (2, n) of the context's tokens there."""
        new = 0
        for first, last, score in best_pairs(logits[START], logits[STOP], self.config.max_answer_tokens):
            span = trimmed(context, int(spans[first, 0]), int(spans[last, 1]))
            if span is None:
                continue
            new += span not in found
            found[span] = max(score, found.get(span, -math.inf))
            if new == self.config.candidates:
                return

    def guesses(self, predictions: AnswerPredictions) -> list[Candidate | None]:
        """Return the answer of each question, None where it is left without."""
        most = self.config.no_answer_threshold if self.facts.unanswerable else math.inf
        return [
            candidates[0] if predictions.margin(row) <= most else None
            for row, candidates in enumerate(predictions.candidates)
        ]

    def figures(self, predictions: AnswerPredictions) -> Mapping[str, float | None]:
        """Return the loss in nats per target, and the means over questions of exact match and F1.

        Where questions may be left without an answer there are `no_answer`, the share of those without that were left
        so (None where all have one), and the no-answer threshold with the highest F1 on these questions, with that F1:
        `best_threshold`, `best_f1`. On a validation table these help to choose `task.no_answer_threshold`; on a test
        table they flatter.
        """
        truths, loss = predictions.truths, predictions.loss
        assert truths is not None and loss is not None
        texts = ["" if guess is None else guess.text for guess in self.guesses(predictions)]
        figures: dict[str, float | None] = {
            "loss": loss,
            "exact": _mean([exact_match(text, true) for text, true in zip(texts, truths, strict=True)]),
            "f1": _mean([f1(text, true) for text, true in zip(texts, truths, strict=True)]),
        }
        if not self.facts.unanswerable:
            return figures
        best = [candidates[0].text for candidates in predictions.candidates]
        scores = [f1(text, true) for text, true in zip(best, truths, strict=True)]
        margins = [predictions.margin(row) for row in range(len(best))]
        threshold, best_f1 = best_threshold(margins, scores, [bool(true) for true in truths])
        left = [text == "" for text, true in zip(texts, truths, strict=True) if not true]
        return figures | {"no_answer": _mean(left) if left else None, "best_f1": best_f1, "best_threshold": threshold}

    def answers(self, predictions: AnswerPredictions, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield the `answer` with its place, context[start:stop], its probability, and all `candidates`.

        A probability is a share among the candidates and, where it is possible, no answer: then `answer` is empty.
        """
        for row, guess in enumerate(self.guesses(predictions)):
            candidates = predictions.candidates[row]
            scores = [candidate.score for candidate in candidates]
            scores += [predictions.none[row]] if self.facts.unanswerable else []
            shares = softmax(np.array(scores) / temperature)
            table = [
                {"text": c.text, "start": c.start, "stop": c.stop, "probability": float(share)}
                for c, share in zip(candidates, shares, strict=False)
            ]
            yield {
                "answer": "" if guess is None else guess.text,
                "start": None if guess is None else guess.start,
                "stop": None if guess is None else guess.stop,
                "probability": float(shares[-1 if guess is None else 0]),
                "candidates": table,
            }


def best_pairs(start: NDArray[np.float32], stop: NDArray[np.float32], most: int) -> Iterator[tuple[int, int, float]]:
    """Yield (first token, last token, score) of all pairs i <= j < i + most, the highest start[i] + stop[j] first.

    >>> import itertools
    >>> start, stop = np.array([5.0, 1.0, 0.0]), np.array([0.0, 1.0, 9.0])
    >>> list(itertools.islice(best_pairs(start, stop, most=2), 3))
    [(1, 2, 10.0), (2, 2, 9.0), (0, 1, 6.0)]
    """
    most = min(most, len(stop))
    behind = np.concatenate([stop, np.full(most - 1, -np.inf, dtype=stop.dtype)])
    scores = start[:, None] + np.lib.stride_tricks.sliding_window_view(behind, most)  # (n, most)
    for place in np.argsort(-scores, axis=None, kind="stable"):
        first, further = divmod(int(place), most)
        if first + further < len(stop):
            yield first, first + further, float(scores[first, further])


def covering_tokens(spans: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """Return the first and the last token that have one of the characters start .. stop - 1.

    >>> covering_tokens(np.array([[0, 3], [3, 7], [7, 8]]), 4, 7)
    (1, 1)
    """
    first = np.searchsorted(spans[:, 1], start, side="right")
    return int(first), int(np.searchsorted(spans[:, 0], stop, side="left")) - 1


def trimmed(context: str, start: int, stop: int) -> Span | None:
    """Return where context[start:stop] is without the white space at its ends; None where it is nothing else.

    >>> trimmed("by the sea ", 2, 11), trimmed("by the sea ", 10, 11)
    ((3, 10), None)
    """
    text = context[start:stop]
    start += len(text) - len(text.lstrip())
    return (start, start + len(text.strip())) if text.strip() else None


def read_answers(table: Table, columns: Columns) -> list[tuple[Answer, ...]]:
    """Return the answers of each row: a list of {"text", "answer_start"}, or one object with a list of each.

    Raises:
        InputError: another form, or a text that is not where the answer is said to start; the text names the place.
    """
    assert columns.label is not None
    contexts = table.texts(_context(table, columns))
    values = table.columns[columns.label]
    result = []
    for row, (context, value) in enumerate(zip(contexts, values, strict=True)):
        answers = _answers_of(value)
        if answers is None:
            raise InputError(
                f"{table.place(row)}: {columns.label} takes a list of answers, got {value!r:.60}; "
                'write [{"text": "...", "answer_start": 9}], or [] where the context has none'
            )
        for answer in answers:
            if context[answer.start : answer.start + len(answer.text)] != answer.text or answer.start < 0:
                raise _misplaced(table.place(row), context, answer)
        result.append(answers)
    return result


def _answers_of(value: Any) -> tuple[Answer, ...] | None:
    """Return the answers in a cell; None where it is of another form."""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list):
        texts, starts = value["text"], value["answer_start"]  # as Hugging Face's tables have them
        value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=False)]
        value = value if len(texts) == len(starts) else None
    if not isinstance(value, list):
        return None
    answers = []
    for one in value:
        text, start = (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else (None, None)
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or isinstance(start, bool):
            return None
        answers.append(Answer(text=text, start=start))
    return tuple(answers)


def _misplaced(place: str, context: str, answer: Answer) -> InputError:
    """Return the error for an answer that is not where it is said to be."""
    there = context.find(answer.text)
    hint = f"it is at {there}" if there >= 0 else "it is nowhere in the context"
    came = context[max(0, answer.start) : max(0, answer.start) + len(answer.text)]
    return InputError(
        f"{place}: the answer {answer.text!r:.60} is not at answer_start {answer.start}, where the context has "
        f"{came!r:.60}; {hint} (characters count from 0)"
    )


def _context(table: Table, columns: Columns) -> str:
    """Return the column of the contexts."""
    if columns.pair is None:
        raise InputError(
            f"{table.path} has no contexts; it has {', '.join(table.columns)}: name their column with data.pair_column"
            ", or give --pair beside --text"
        )
    return columns.pair


def _behind(encoder: TextEncoder) -> tuple[int, ...]:
    """Return the symbols behind a context: a decoder's last one stands for no answer, which no place of one can."""
    eos = encoder.tokenizer.specials.eos
    return encoder.pair.after or ((eos,) if encoder.causal and eos is not None else ())


def _notes(path: str, inside_tokens: int, too_long: int) -> Iterator[str]:
    """Yield what is to be known about the answers of a table."""
    if inside_tokens:
        yield f"{path}: answers that begin or end inside a token: {inside_tokens:,}; the tokens around them are learnt"
    if too_long:
        yield f"{path}: answers that no window has as a whole: {too_long:,}; raise text.overlap to learn them"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
