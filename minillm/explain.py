r"""Which pieces of a text made a fine-tuned model say what it says.

f is the model's evidence for an answer, a number without ceiling to which every piece adds or from which it takes:

    single_label   log-odds of the label, log p - log(1 - p) = z_y - log sum_{k != y} exp z_k         in nats
    multi_label    log-odds of the label, its logit                                                   in nats
    regression     the number, in its unit

Pieces are scored in one of three ways. e is the embedding output of the text, e' that of the baseline: the same frame
of control symbols with an empty symbol (the mask, or where a decoder has met none the pad) for each piece.

    integrated_gradients   (e_t - e'_t) . integral over a in [0, 1] of df/de_t at e' + a (e - e')
    gradient_x_input       e_t . df/de_t at e
    occlusion              f(text) - f(text with the empty symbol for piece t)

Integrated gradients are complete: their scores sum to f(text) - f(baseline). The integral is taken by Gauss-Legendre
nodes, twice as many until the sum is met to a hundredth; where it is not, the result says so, and such scores must not
be believed. The other two have no such check; occlusion is the difference that it says, and blind to what a text says
twice.

Source: Sundararajan et al. (2017), arXiv:1703.01365; Zeiler and Fergus (2014), arXiv:1311.2901 (occlusion).

Read next: `reading.py` and `explain_shown.py`, then `finetune/embedding_output.py`, which is how e is replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm.errors import InputError
from minillm.evaluate import check_finite, evaluating
from minillm.finetune.config import TaskFacts
from minillm.finetune.embedding_output import changed_embeddings
from minillm.finetune.predict import Finetuned
from minillm.finetune.table import text_table
from minillm.finetune.task_model import TaskModel
from minillm.reading import Reading, only_model, reading_of
from minillm.tokenizer.base import Specials

Method = Literal["integrated_gradients", "gradient_x_input", "occlusion"]
Score = Callable[[Tensor], Tensor]  # outputs (N, K) -> f, (N,)

STEPS = 16  # nodes to begin with
MOST_STEPS = 1024
TOLERANCE = 0.01  # gap of the sum, as a share of what it should be
LEAST = 0.1  # of f; the share is taken of this where f hardly moves
ROWS = 32  # sequences that the model takes at once


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about a text.

    tokens, inputs: as in `Reading`. score: what f makes of the outputs.
    baseline: (1, T), with an empty symbol for each piece and the same control symbols.
    """

    model: TaskModel
    tokens: Tensor
    baseline: Tensor
    score: Score
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def values(self, tokens: Tensor) -> Tensor:
        """Return f of each row of tokens (N, T), (N,) float32."""
        outputs = self.model(tokens, **{name: value.expand(len(tokens), -1) for name, value in self.inputs.items()})
        check_finite(outputs.detach())
        return self.score(outputs.float())

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return the embedding output of tokens (1, T), (T, C)."""
        found: list[Tensor] = []

        def note(e: Tensor) -> Tensor:
            found.append(e.detach())
            return e

        with changed_embeddings(self.model.backbone, note):
            self.values(tokens)
        return found[0][0]

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (N,) and its gradient (N, T, C) where the embedding output is each of the points (N, T, C)."""
        points = points.detach().requires_grad_()
        with changed_embeddings(self.model.backbone, lambda e: points):
            values = self.values(self.tokens.expand(len(points), -1))
        (gradient,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), gradient


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The score of every token.

    scores: (T,) float64, in the unit of f. value: f(text).
    baseline_value: f(baseline); None where the method has none. steps: nodes of the integral; None: there is none.
    """

    method: Method
    scores: NDArray[np.float64]
    value: float
    baseline_value: float | None = None
    steps: int | None = None

    @property
    def gap(self) -> float | None:
        """By how much the scores sum to more than f(text) - f(baseline); None where they need not sum to it."""
        if self.steps is None or self.baseline_value is None:
            return None
        return float(self.scores.sum()) - (self.value - self.baseline_value)

    def complete(self, tolerance: float = TOLERANCE) -> bool:
        """Return whether the scores sum to what they should, to a share of it; true for a method without a sum."""
        if self.gap is None or self.baseline_value is None:
            return True
        return abs(self.gap) <= tolerance * max(abs(self.value - self.baseline_value), LEAST)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer and what made it.

    label: that f speaks for; None: a regression. probability: of the label at the run's temperature; None likewise.
    reading: what was scored. attribution: a score for each of its tokens.
    """

    label: str | None
    probability: float | None
    reading: Reading
    attribution: Attribution


def attribute(question: Question, method: Method) -> Attribution:
    """Return the score of every token by one of the methods.

    Cost: integrated_gradients: a forward and a backward pass for each node, 16 to 1024 of them; gradient_x_input: one;
        occlusion: a forward pass for each piece. The parameters' gradients are neither read nor written.
    """
    with evaluating(question.model), torch.enable_grad():  # also where the caller stands inside torch.no_grad
        match method:
            case "integrated_gradients":
                return integrated_gradients(question)
            case "gradient_x_input":
                return gradient_x_input(question)
            case "occlusion":
                return occlusion(question)


def integrated_gradients(
    question: Question, *, tolerance: float = TOLERANCE, most_steps: int = MOST_STEPS
) -> Attribution:
    """Return the scores of integrated gradients, with as many nodes as their sum needs.

    Args:
        tolerance: the gap that is small enough, as a share of f(text) - f(baseline).
        most_steps: where to give up; `Attribution.complete` says whether that was necessary.
    """
    end, start = question.embedded(question.tokens), question.embedded(question.baseline)  # (T, C)
    value, baseline_value = (float(question.at(e[None])[0]) for e in (end, start))
    steps = min(STEPS, most_steps)
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
        shares, weights = (nodes + 1) / 2, weights / 2
        scores = np.zeros(len(end))
        for first in range(0, steps, ROWS):
            part = torch.as_tensor(shares[first : first + ROWS], dtype=end.dtype, device=end.device)
            _, gradient = question.at(start + part[:, None, None] * (end - start))  # (n, T, C)
            along = (gradient.double() * (end - start).double()).sum(dim=-1).cpu().numpy()  # (n, T)
            scores += weights[first : first + ROWS] @ along
        found = Attribution(
            method="integrated_gradients",
            scores=scores,
            value=value,
            baseline_value=baseline_value,
            steps=steps,
        )
        if found.complete(tolerance) or steps == most_steps:
            return found
        steps = min(2 * steps, most_steps)


def gradient_x_input(question: Question) -> Attribution:
    """Return the scores of the gradient times the input: f's slope where it stands, taken for all of the way to 0."""
    end = question.embedded(question.tokens)  # (T, C)
    value, gradient = question.at(end[None])
    scores = (gradient[0].double() * end.double()).sum(dim=-1).cpu().numpy()
    return Attribution(method="gradient_x_input", scores=scores, value=float(value))


def occlusion(question: Question) -> Attribution:
    """Return by how much f falls when a piece is not seen; 0 for control symbols, which stay."""
    places = (question.tokens[0] != question.baseline[0]).nonzero()[:, 0]  # (P,)
    rows = question.tokens.expand(len(places), -1).clone()  # (P, T)
    rows[torch.arange(len(places)), places] = question.baseline[0, places]
    scores = np.zeros(question.tokens.shape[1])
    with torch.no_grad():
        value = float(question.values(question.tokens))
        for part, where in zip(rows.split(ROWS), places.split(ROWS), strict=True):
            scores[where.cpu().numpy()] = value - question.values(part).double().cpu().numpy()
    return Attribution(method="occlusion", scores=scores, value=value)


def score_of(facts: TaskFacts, answer: int) -> Score:
    """Return f for a task and the number of one of its labels; see the head of this file.

    Raises:
        InputError: the task gives no single answer to a text.
    """
    match facts.name:
        case "single_label":
            others = [k for k in range(len(facts.labels)) if k != answer]
            return lambda z: z[:, answer] - z[:, others].logsumexp(dim=1)
        case "multi_label":
            return lambda z: z[:, answer]
        case "regression":
            return lambda z: z[:, 0] * facts.scale + facts.center
    raise InputError(
        f"explain attributes one answer a text: single_label, multi_label or regression; this run is {facts.name}"
    )


def empty_symbol(specials: Specials, kind: str) -> int:
    """Return the token that stands for a piece that is not there: what the model met as one, where it met any."""
    candidates = (specials.mask, specials.pad, specials.unk) if kind == "encoder" else (specials.pad, specials.unk)
    for token in candidates:
        if token is not None:
            return token
    raise InputError("explain needs a mask, pad or unknown symbol for pieces that are not seen; the tokenizer has none")


def explain(
    loaded: Finetuned,
    text: str,
    pair: str | None = None,
    *,
    label: str | None = None,
    method: Method = "integrated_gradients",
) -> Explanation:
    """Return why a fine-tuned model says about a text what it says.

    Args:
        pair: the second text, where the task is on pairs.
        label: what is to be explained; None: the likeliest one.
    Raises:
        InputError: a label that the run does not know, a task without one answer a text, a text in several windows, or
            a run of several seeds.
    """
    only_model(loaded)  # a run of several seeds is refused first
    (model,), facts = loaded.models, loaded.task.facts
    score_of(facts, 0)  # a task that cannot be explained is refused first
    answer = _number(facts, label)
    reading = reading_of(loaded, text, pair)
    table = text_table([text], None if pair is None else [pair])
    said = loaded.predictions(table, loaded.columns(table))
    if answer is None and facts.name != "regression":
        answer = int(said.logits[0].argmax())
    specials, temperature = loaded.tokenizer.specials, float(loaded.calibration.get("temperature", 1.0))
    frame = dataclasses.replace(specials, unk=None).ids()  # an unknown character is a piece of the text
    control = torch.isin(reading.tokens, torch.tensor(frame, device=reading.tokens.device))
    question = Question(
        model=model,
        tokens=reading.tokens,
        baseline=reading.tokens.where(control, empty_symbol(specials, model.config.backbone.kind)),
        score=score_of(facts, answer or 0),
        inputs=reading.inputs,
    )
    return Explanation(
        label=None if answer is None else facts.labels[answer],
        probability=None if answer is None else float(said.probabilities(temperature)[0, answer]),
        reading=reading,
        attribution=attribute(question, method),
    )


def _number(facts: TaskFacts, label: str | None) -> int | None:
    """Return the number of a label; None for none.

    Raises:
        InputError: the run does not know it.
    """
    if label is None:
        return None
    if label not in facts.labels:
        known = ", ".join(facts.labels) or "no labels: it predicts a number"
        raise InputError(f"--label {label!r} is none of this run's; it knows {known}")
    return facts.labels.index(label)
