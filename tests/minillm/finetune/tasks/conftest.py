"""A small model for a task, and a stand-in for one that has learnt everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minillm.finetune.config import HeadConfig, TaskModelConfig, TextConfig
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.task_model import TaskModel
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.tokenizer.byte import ByteTokenizer

BYTES = ByteTokenizer()


@pytest.fixture(scope="session")
def task_model():
    """Return a function: task, kind, settings -> (TaskModel with random weights in float64, its TextEncoder)."""

    def make(task: Any, kind: str = "encoder", *, tokenizer=BYTES, context=64, text=None, **choices: Any):
        torch.manual_seed(0)
        shape: dict[str, Any] = {"num_layers": 2, "width": 16, "num_heads": 2, "init_std": 0.5, "kind": kind}
        config = ModelConfig(vocab_size=tokenizer.vocab_size, context=context, **(shape | choices))
        head = HeadConfig(dropout=0.0)
        text = TextConfig(**(text or {}))
        backbone = build_model(config)
        whole = TaskModelConfig(task=task.facts, text=text, backbone=config, head=head)
        model = TaskModel(whole, backbone, task.make_head(head, config)).double()
        model.compute_in(torch.float64)
        return model, TextEncoder(tokenizer, config, text)

    return make


@pytest.fixture
def all_knowing(monkeypatch):
    """Return a function that makes a task's model answer each target rightly, and noise where there is none."""

    def teach(task: Any) -> None:
        plain = task.outputs

        def outputs(model, batch):
            logits = plain(model, batch)
            targets = batch.targets
            known = (targets != -100)[..., None]
            right = torch.nn.functional.one_hot(targets.clamp(min=0), logits.shape[-1]) * 1000.0
            return torch.where(known, right, logits).float()

        monkeypatch.setattr(task, "outputs", outputs)

    return teach
