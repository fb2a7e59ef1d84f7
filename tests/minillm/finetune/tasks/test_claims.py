"""What holds for tagging, question answering and prompts alike: gradients of micro-batches, padding, saved weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.checkpoint.native import put_tensors, tensors_of
from minillm.finetune.config import TaskConfig
from minillm.finetune.loader import collate
from minillm.finetune.regularisers.r_drop import RDrop
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.prompt_answer import PromptAnswer
from minillm.finetune.tasks.question_answering import QuestionAnswering
from minillm.finetune.tasks.tagging import Tagging
from minillm.training.gradient import add_gradient, targets_in


def answer(context, text):
    return [{"text": text, "answer_start": context.index(text)}] if text else []


TAGGED = [(["Ada"], ["B-PER"]), (["in", "New", "York", "."], ["O", "B-LOC", "I-LOC", "O"]), (["x"] * 9, ["O"] * 9)]
ASKED = [("Who?", "Ada wrote.", "Ada"), ("Where?", "In the old harbour it lay", "old harbour"), ("Why?", "Yes", "")]
PROMPTS = [("a", "b"), ("two and two", "four"), ("the sea", "blue, or green")]
TABLES = {
    Tagging: (
        {"tokens": [words for words, _ in TAGGED], "tags": [tags for _, tags in TAGGED]},
        Columns(text="tokens", label="tags"),
    ),
    QuestionAnswering: (
        {
            "question": [question for question, _, _ in ASKED],
            "context": [context for _, context, _ in ASKED],
            "answers": [answer(context, text) for _, context, text in ASKED],
        },
        Columns(text="question", pair="context", label="answers"),
    ),
    PromptAnswer: (
        {"prompt": [prompt for prompt, _ in PROMPTS], "answer": [text for _, text in PROMPTS]},
        Columns(text="prompt", label="answer"),
    ),
}
CASES = [
    pytest.param(Tagging, "encoder", {}, id="tagging-encoder"),
    pytest.param(Tagging, "decoder", {}, id="tagging-decoder"),
    pytest.param(QuestionAnswering, "encoder", {}, id="questions-encoder"),
    pytest.param(QuestionAnswering, "decoder", {}, id="questions-decoder"),
    pytest.param(PromptAnswer, "decoder", {}, id="prompts"),
    pytest.param(PromptAnswer, "decoder", {"packing": True}, id="prompts-packed"),
]


@pytest.fixture
def parts(task_model):
    """Return a function: task's class, kind, settings -> (task, model, its sequences)."""

    def make(cls, kind, choices):
        columns, roles = TABLES[cls]
        table = Table(path="some.jsonl", columns=columns, lines=[1, 2, 3])
        task = cls.learn(TaskConfig(name=cls.name, **choices), table, roles)
        model, encoder = task_model(task, kind, context=32, token_types=2)
        return task, model, task.encode(table, roles, encoder, labelled=True)

    return make


def gradient(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


@pytest.mark.parametrize("cls, kind, choices", CASES)
def test_micro_batches_give_the_gradient_of_the_mean(parts, cls, kind, choices):
    """A mean over all targets, taken by PyTorch on the whole batch, however uneven the rows' counts are."""
    task, model, sequences = parts(cls, kind, choices)
    rows = np.arange(len(sequences))
    batch = task.prepare(collate(sequences, rows, pad=3, seed=1))
    outputs, targets = task.outputs(model.train(), batch), batch.targets
    targets = targets[targets != -100] if cls is PromptAnswer else targets.flatten()
    F.cross_entropy(outputs.reshape(len(targets), -1), targets).backward()
    expected = gradient(model)
    counts = (batch.targets != -100).sum(dim=1)
    assert cls is QuestionAnswering or counts.unique().numel() == len(counts)
    for k in (1, len(rows)):
        model.zero_grad()
        _, excess = add_gradient(
            model, task, batch, count=targets_in(batch), micro_batches=k, device=torch.device("cpu")
        )
        assert (gradient(model) - expected).abs().max() < 1e-5 * expected.abs().max(), f"{k} micro-batches"
        assert excess == 0


@pytest.mark.parametrize("cls", [Tagging, PromptAnswer])
def test_labels_are_smoothed_in_training_and_never_in_evaluation(parts, cls):
    """So that losses of runs with and without smoothing can be held against each other; the truth is PyTorch's."""
    task, model, sequences = parts(cls, "decoder", {"label_smoothing": 0.3})
    rows = np.arange(len(sequences))
    batch = collate(sequences, rows, pad=3, seed=1)
    outputs, targets = task.outputs(model.eval(), batch), batch.targets
    targets = targets[targets != -100] if cls is PromptAnswer else targets.flatten()
    plain, smoothed = (
        F.cross_entropy(outputs.reshape(len(targets), -1), targets, label_smoothing=e).item() for e in (0.0, 0.3)
    )
    trained = task.step(model, batch)
    assert (trained.total / trained.count).item() == pytest.approx(smoothed, rel=1e-5)
    evaluated = task.figures(task.predict(model, [(rows, batch)], sequences))["loss"]
    assert evaluated == pytest.approx(plain, rel=1e-5) and abs(plain - smoothed) > 1e-2


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("cls, kind, choices", CASES)
@torch.no_grad()
def test_padding_moves_no_output(parts, cls, kind, choices, left):
    """Each sequence alone and among longer ones, padded on either side: the same logits and the same loss."""
    task, model, sequences = parts(cls, kind, choices)
    model.eval()
    together = collate(sequences, np.arange(len(sequences)), pad=3, left=left)
    real = together.real()
    total, hidden = 0.0, model(together.tokens, **together.model_inputs())
    for row in range(len(sequences)):
        alone = collate(sequences, np.array([row]), pad=3)
        assert (model(alone.tokens, **alone.model_inputs())[0] - hidden[row][real[row]]).abs().max() < 1e-5
        total += task.step(model, alone).total
    assert abs(task.step(model, together).total - total) < 1e-4 * total


@pytest.mark.parametrize("cls, kind, choices", CASES)
def test_saved_weights_predict_the_same(parts, cls, kind, choices):
    """A second model, its head drawn anew, is the first one once it has its tensors and the facts."""
    task, model, sequences = parts(cls, kind, choices)
    _, other, _ = parts(cls, kind, choices)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    put_tensors(other, tensors_of(model), source="a test")
    again = cls(task.config, task.facts)
    batches = [(np.arange(len(sequences)), collate(sequences, np.arange(len(sequences)), pad=3))]
    assert repr(again.predict(other, batches, sequences)) == repr(task.predict(model, batches, sequences))


@pytest.mark.parametrize(
    "cls, kind, choices", [*CASES, pytest.param(PromptAnswer, "decoder", {"exact_match": True}, id="generated")]
)
def test_figures_have_their_names(parts, cls, kind, choices):
    """What metrics.csv has columns for, and the one that the best checkpoint goes by."""
    task, model, sequences = parts(cls, kind, choices)
    batches = [(np.arange(len(sequences)), collate(sequences, np.arange(len(sequences)), pad=3))]
    figures = task.figures(task.predict(model, batches, sequences))
    assert set(figures) == {"loss", *task.figure_names}
    assert task.best_metric in figures


@pytest.mark.parametrize("cls, kind, choices", CASES)
def test_r_drop_adds_nothing_without_dropout(parts, cls, kind, choices):
    """Two equal passes agree: the loss is the task's own, and no place in padding or without a target is in it."""
    task, model, sequences = parts(cls, kind, choices)
    batch = collate(sequences, np.arange(len(sequences)), pad=3, seed=1)
    own, together = task.step(model.train(), batch), RDrop(task, alpha=5.0).step(model, batch)
    assert together.count == own.count and abs(together.total - own.total) < 1e-4 * own.total
