"""A tiny task model and plain tasks whose losses are PyTorch's, for the regularisers to stand around."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import IGNORED, Batch, has_target
from minillm.finetune.config import HeadConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.heads import TextHead, TokenHead
from minillm.finetune.task_model import TaskModel
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.objectives.loss import Loss

TOKENS = ("tagging", "question_answering", "prompt_answer")  # tasks whose head answers for each token
LENGTHS = (7, 3, 5, 1)  # real tokens of the four rows: full, ragged, and the smallest


class PlainTask:
    """A task in two halves; weights are as in `Batch`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def outputs(self, model: Any, batch: Batch) -> Tensor:
        outputs = model(batch.tokens, **batch.model_inputs())
        if self.name == "prompt_answer":  # at the places with a target alone
            return outputs[has_target(batch.targets)]
        if self.name == "question_answering":  # two distributions over the real places, (B, 2, T)
            return outputs[:, :, :2].transpose(1, 2).masked_fill(~batch.real()[:, None, :], -1e9)
        return outputs

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        targets = batch.targets
        assert targets is not None
        if self.name == "multi_label":
            losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        elif self.name == "regression":
            losses = (outputs[:, 0] - targets).square()
        else:
            there = targets[has_target(targets)] if self.name == "prompt_answer" else targets.flatten()
            losses = F.cross_entropy(outputs.flatten(0, -2), there, ignore_index=IGNORED, reduction="none")
        weights = torch.ones(targets.shape) if batch.weights is None else batch.weights
        places = has_target(targets) if losses.numel() != targets.numel() else ...
        total = (weights[places].flatten() * losses.flatten()).sum()
        return Loss(total=total, count=weights[has_target(targets)].sum())

    def step(self, model: Any, batch: Batch) -> Loss:
        return self.loss(self.outputs(model, batch), batch)


def make_model(
    task: str = "single_label", *, dropout: float = 0.0, outputs: int = 3, dtype: torch.dtype = torch.float32, **shape
) -> TaskModel:
    """Return a task model in training mode whose logits are far from alike."""
    torch.manual_seed(3)
    chosen: dict[str, Any] = {"kind": "encoder", "num_layers": 2, "width": 16, "num_heads": 2, "init_std": 0.3}
    chosen |= {"vocab_size": 20, "context": 8, "head": "none", "dropout": dropout, "attention_dropout": dropout}
    backbone, head = ModelConfig(**(chosen | shape)), HeadConfig(dropout=dropout)
    config = TaskModelConfig(task=TaskFacts(), text=TextConfig(), backbone=backbone, head=head)
    kind = TokenHead if task in TOKENS else TextHead
    model = TaskModel(config, build_model(backbone), kind(head, backbone, 1 if task == "regression" else outputs))
    model.compute_in(dtype)
    return model.train()


def make_batch(task: str = "single_label", *, outputs: int = 3, weighted: bool = False, left: bool = False) -> Batch:
    """Return four rows of unequal lengths, padded on the right or the left."""
    generator = torch.Generator().manual_seed(4)
    B, T = len(LENGTHS), max(LENGTHS)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(20, (B, T), generator=generator)
    starts = T - lengths if left else torch.zeros(B, dtype=torch.int64)
    if task in ("tagging", "prompt_answer"):
        columns = torch.arange(T)
        real = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
        targets = torch.randint(outputs, (B, T), generator=generator).masked_fill(~real, IGNORED)
    elif task == "question_answering":
        targets = (starts + torch.tensor([0, 2, 1, 0]))[:, None] + torch.tensor([0, 0])
        targets[2, 1] = IGNORED
    elif task == "multi_label":
        targets = torch.randint(2, (B, outputs), generator=generator)
    elif task == "regression":
        targets = torch.randn(B, generator=generator)
    else:
        targets = torch.randint(outputs, (B,), generator=generator)
    weights = torch.rand(targets.shape, generator=generator) + 0.5 if weighted else None
    return Batch(
        tokens=tokens, starts=starts if left else None, lengths=lengths, targets=targets, weights=weights, seed=11
    )


@pytest.fixture
def plain_task():
    """Return the class of tasks."""
    return PlainTask


@pytest.fixture
def task_model():
    """Return the maker of models."""
    return make_model


@pytest.fixture
def ragged_batch():
    """Return the maker of batches."""
    return make_batch
