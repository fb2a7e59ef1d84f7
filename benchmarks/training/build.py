"""A contender as a trainer: what `minillm pretrain` or `finetune` puts together, with random tokens for a text.

Read next: `stepper.py`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.training.peers import PeerObjective, build_peer
from benchmarks.training.registration import Contender, Recipe
from minillm.checkpoint.run_folder import RunFolder
from minillm.data.batch import Batch
from minillm.data.loader import Loader
from minillm.data.shards import TokenStore
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.source import backbone_config, bare_task_model
from minillm.finetune.tasks.single_label import SingleLabel
from minillm.model.count import count_parameters, flops_per_token
from minillm.model.transformer import build_model
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.masked_lm import MaskedLM
from minillm.pretrain_config import PretrainConfig
from minillm.training.distributed import Processes
from minillm.training.gradient import Objective
from minillm.training.precision import choose_compute_dtype
from minillm.training.trainer import Batches, Trainer

CONTROL_TOKENS = 5  # ids 0 .. 4 stand for pad, cls, sep, mask and unknown where a recipe masks tokens
MASK = 3
DOCUMENT = 400  # tokens of a document on average, where documents are kept apart
LOSS_OFF = 0.05  # share of the expected loss that a contender's own may differ by, where thousands are predicted
STEPS = 256  # of text; then it begins anew, in another order


def make_trainer(recipe: Recipe, contender: Contender, device: torch.device) -> Trainer:
    """Return a contender, ready for its first step; nothing is written, and no step evaluates.

    Raises:
        peers.NotInstalled: the peer's package is not there.
        InputError: settings that do not go together.
    """
    config = recipe.config(contender)
    objective = classification(recipe.labels) if recipe.labels else make_objective(config)
    batches = LabelledRows(config, recipe.labels) if recipe.labels else make_loader(config)
    torch.manual_seed(config.train.seed)
    model = make_model(recipe, contender)
    return trainer_of(config, model, PeerObjective(objective) if contender.peer else objective, batches, device)


def trainer_of(
    config: PretrainConfig,
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    device: torch.device,
    folder: Path = Path("benchmarks write no run"),
    processes: Processes | None = None,
) -> Trainer:
    """Return a trainer with the settings of a run, to be asked for single steps: it does not evaluate."""
    return Trainer(
        model,
        objective,
        batches,
        train=config.train,
        optim=config.optim,
        folder=RunFolder(folder),
        evaluate=lambda model: {},
        device=device,
        compute_dtype=choose_compute_dtype(config.train.compute_dtype, device, width=config.model.width).dtype,
        processes=processes,
    )


def make_model(recipe: Recipe, contender: Contender) -> nn.Module:
    """Return a contender's model at initial weights from PyTorch's default generator."""
    config = recipe.config(contender).model
    if contender.peer:
        return build_peer(recipe.peer, config, labels=recipe.labels)
    if not recipe.labels:
        return build_model(config)
    task, head = classification(recipe.labels), HeadConfig(pooling="pooler", dropout=config.dropout)
    backbone = backbone_config(config, task, recipe.name)
    return bare_task_model(TaskModelConfig(task=task.facts, text=TextConfig(), backbone=backbone, head=head), task)


def classification(labels: int) -> SingleLabel:
    """Return the task of telling which of some labels a text has."""
    return SingleLabel(TaskConfig(), TaskFacts(name="single_label", labels=tuple(map(str, range(labels)))))


class LabelledRows:
    """Full rows of random tokens, each with a random label: the same for every contender of the same sizes."""

    def __init__(self, config: PretrainConfig, labels: int) -> None:
        self.config, self.labels = config, labels

    def batch(self, step: int) -> Batch:
        """Return the rows of a step."""
        B, T = self.config.train.batch_size, self.config.model.context
        generator = torch.Generator().manual_seed(self.config.train.seed + step)
        tokens = torch.randint(self.config.model.vocab_size, (B, T), generator=generator)
        return Batch(tokens=tokens, targets=torch.randint(self.labels, (B,), generator=generator), seed=step)


def task_of(recipe: Recipe, contender: Contender) -> dict[str, Any]:
    """Return what a step of a contender is: its tokens, and what this project's model of that shape has and costs.

        flops = (6 N + 12 L C T) * tokens,    N the weights that multiply, a tied output weight once

    as `minillm.model.count.flops_per_token` states it: embeddings that are only looked up are left out. Of masked LM's
    tokens only those that are asked for enter the head, of a classifier's one a row. A peer that multiplies more is not
    credited with it.
    """
    config = recipe.config(contender)
    with torch.device("meta"):  # no memory, no random numbers
        model: Any = make_model(recipe, dataclasses.replace(contender, peer=False))
    head_share = 1.0 if config.model.kind == "decoder" else config.objective.rate
    rows, context = config.train.batch_size, config.model.context
    if recipe.labels:
        of_rows = 6 * sum(m.weight.numel() for m in model.head.modules() if isinstance(m, nn.Linear)) * rows
        flops = flops_per_token(model.backbone, context) * rows * context + of_rows
    else:
        flops = flops_per_token(model, context, head_share=head_share) * rows * context
    return {
        "tokens": rows * context,
        "flops": flops,
        "parameters_of_ours": count_parameters(model),
        "loss_expected": math.log(recipe.labels or vocabulary(config)),
        "loss_margin": LOSS_OFF + (1 / math.sqrt(rows) if recipe.labels else 0.0),  # one target a row: few
        "sizes": {
            "B": config.train.batch_size,
            "T": config.model.context,
            "C": config.model.width,
            "L": config.model.num_layers,
            "V": config.model.vocab_size,
        },
        "micro_batches": config.train.micro_batches,
    }


def vocabulary(config: PretrainConfig) -> int:
    """Return how many tokens the random text is made of; nobody can expect a loss below the logarithm of that."""
    return config.model.vocab_size - (0 if config.model.kind == "decoder" else CONTROL_TOKENS)


def make_objective(config: PretrainConfig) -> CausalLM | MaskedLM:
    """Return the objective, with a vocabulary whose first ids are control symbols and whose odd ones go on a word."""
    if config.objective.name == "causal_lm":
        return CausalLM(config.objective)
    vocab_size = config.model.vocab_size
    begins_inside = np.arange(vocab_size) % 2 == 1
    return MaskedLM(
        config.objective,
        vocab_size=vocab_size,
        mask_token=MASK,
        control_tokens=range(CONTROL_TOKENS),
        word_classes=(begins_inside, np.ones(vocab_size, dtype=bool)),
    )


def make_loader(config: PretrainConfig) -> Loader:
    """Return batches of random tokens, the same for every contender of the same sizes."""
    generator = np.random.default_rng(config.train.seed)
    causal = config.model.kind == "decoder"
    lowest, count = (
        config.model.vocab_size - vocabulary(config),
        STEPS * config.train.batch_size * config.model.context + 1,
    )
    tokens = generator.integers(lowest, config.model.vocab_size, count, dtype=np.uint32)
    bounds = np.unique(np.concatenate([[0, count], generator.integers(0, count, count // DOCUMENT)]))
    return Loader(
        TokenStore(tokens=tokens, bounds=bounds, num_bytes=count),
        context=config.model.context,
        batch_size=config.train.batch_size,
        shift=causal,
        document_mask=config.data.document_mask,
        layout=config.data.layout,
        padding_side=config.data.padding_side,
        seed=config.train.seed,
    )
