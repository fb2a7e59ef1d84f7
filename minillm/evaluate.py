"""How good a model is on held-out text, in figures that do not depend on batches, and which anchors it beats.

    loss          = sum of -log p(target) / number of targets                    nats per target
    perplexity    = exp(loss)
    bits per byte = sum of -log p(target) / log(2) / bytes of the text           decoders: comparable across tokenizers
    accuracy      = share of masked tokens whose likeliest guess is right        encoders

Read next: `anchors.py`, then `explain.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import minillm_kernels
import torch
from torch import Tensor, nn

from minillm.anchors import Anchor, Prepares
from minillm.data.batch import IGNORED, Batch
from minillm.errors import InputError
from minillm.model.transformer import Decoder, Encoder

LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in float32


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on held-out text.

    loss: nats per target, without label smoothing or other terms of training.
    perplexity: exp(loss).
    bits_per_byte: None for masked LM, and where the number of bytes was not given.
    masked_accuracy: in [0, 1]; None for causal LM.
    targets: how many tokens were predicted.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    masked_accuracy: float | None
    targets: int


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block without dropout; the model's mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients and dropout; the model's mode comes back afterwards."""
    with evaluating(model), torch.no_grad():
        yield


def check_finite(logits: Tensor) -> None:
    """Raise InputError where the logits of a model that is used, not trained, hold NaN or infinity."""
    if not logits.isfinite().all():
        raise InputError(
            "the model gives NaN or infinite logits: its training diverged; take an earlier checkpoint, or train again"
        )


def evaluate(
    model: Decoder | Encoder,
    objective: Prepares,
    batches: Iterable[Batch],
    *,
    num_bytes: int | None = None,
    max_batches: int | None = None,
    rows: int | None = None,
) -> Evaluation:
    """Return the figures of a model over batches: sums over all targets, divided once.

    Args:
        model: its mode, device and random state stay as they are.
        objective: its `prepare` chooses the targets; see `ObjectiveConfig.for_evaluation`.
        batches: held-out text once, such as `loader.eval_batches(rows)`.
        num_bytes: of the text behind all batches, for bits per byte.
        max_batches: stop after as many, for a cheap look during training; then there are no bits per byte.
        rows: sequences that the model takes at once; None: a batch. The objective always prepares a whole batch, so
            that which tokens are masked does not depend on how much fits on a device.
    Raises:
        InputError: no targets.
        ValueError: an objective that sets no targets, or both `num_bytes` and `max_batches`.

    Cost: one forward pass; logits of 64 MiB at most are held at a time.
    """
    if num_bytes is not None and max_batches is not None:
        raise ValueError("num_bytes counts all batches, so it cannot go with max_batches; give one of them")
    total, right, count = 0.0, 0, 0
    device = model.output_weight.device
    with inference(model):
        for batch in itertools.islice(batches, max_batches):
            prepared = objective.prepare(batch)
            if prepared.targets is None:
                raise ValueError("the objective prepared a batch without targets; a causal one needs a shifted loader")
            size = len(prepared.tokens) if rows is None else rows
            for first in range(0, len(prepared.tokens), size):
                part_loss, part_right, part_count = _sums(model, prepared.rows(first, first + size).to(device))
                total, right, count = total + part_loss, right + part_right, count + part_count
    if not count:
        raise InputError("no targets to evaluate on; the held-out text is too short, hold out more of it")
    causal = model.config.kind == "decoder"
    loss = total / count
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,  # exp(710) is no float any more
        bits_per_byte=total / math.log(2) / num_bytes if causal and num_bytes else None,
        masked_accuracy=None if causal else right / count,
        targets=count,
    )


def _sums(model: Decoder | Encoder, batch: Batch) -> tuple[float, int, int]:
    """Return the summed loss in nats, the number of right guesses and the number of targets of a prepared batch."""
    assert batch.targets is not None
    hidden = model(batch.tokens, **batch.model_inputs())  # (B, T, C)
    chosen = batch.targets != IGNORED  # (B, T)
    parts = list(_by_parts(model, hidden[chosen], batch.targets[chosen]))
    return sum(loss for loss, _ in parts), sum(hits for _, hits in parts), int(chosen.sum())


def _by_parts(model: Decoder | Encoder, hidden: Tensor, targets: Tensor) -> Iterator[tuple[float, int]]:
    """Yield the summed loss in nats and the number of right guesses of (N, C) hidden states, a part at a time."""
    rows = max(1, LOGITS_AT_ONCE // model.output_weight.shape[0])
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.project(part).float()  # (n, V)
        losses = minillm_kernels.cross_entropy(logits, wanted, reduction="none")  # (n,)
        # Added in float64, so that the sum does not depend on the batches; on the CPU, since MPS has no float64.
        yield float(losses.cpu().double().sum()), int((logits.argmax(dim=-1) == wanted).sum())


def compare(evaluation: Evaluation, anchors: Sequence[Anchor]) -> list[str]:
    """Return a table of the model among the anchors, best first, and the line that says which ones it beats.

    Args:
        evaluation: by bits per byte where it has them, else by loss.
        anchors: on the same held-out text, in the same unit.
    Raises:
        ValueError: an anchor without the figure that the evaluation goes by.
    """
    causal = evaluation.bits_per_byte is not None
    own = evaluation.loss if evaluation.bits_per_byte is None else evaluation.bits_per_byte
    rows = [(_figure(anchor, causal), anchor.name, anchor.masked_accuracy, anchor.note) for anchor in anchors]
    table = sorted([*rows, (own, "this model", evaluation.masked_accuracy, "")], key=lambda row: row[0])
    width = max(len(name) for _, name, _, _ in table)
    lines = ["   bits per byte" if causal else "   nats per masked token   right guesses"]
    for figure, name, accuracy, note in table:
        mark = ">" if name == "this model" else " "
        shown = "" if causal else f"   {'' if accuracy is None else format(100 * accuracy, '.1f') + ' %':>7}"
        lines.append(f" {mark} {figure:7.3f}{shown}   {name:<{width}}   {note}".rstrip())
    beaten = [name for figure, name, _, _ in sorted(rows, key=lambda row: -row[0]) if own < figure]
    others = [name for figure, name, _, _ in sorted(rows, key=lambda row: -row[0]) if not own < figure]
    return [
        *lines,
        f"The model beats {', '.join(beaten) or 'nothing'}{'; not ' + ', '.join(others) if others else ''}.",
    ]


def _figure(anchor: Anchor, causal: bool) -> float:
    """Return the figure of an anchor that the table goes by."""
    figure = anchor.bits_per_byte if causal else anchor.loss
    if figure is None:
        raise ValueError(f"anchor {anchor.name} has no {'bits per byte' if causal else 'loss'}; it is of another task")
    return figure
