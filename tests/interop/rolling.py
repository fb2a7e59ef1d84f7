"""What lm-evaluation-harness asks of whole texts, by `minillm.evaluate`: each token once, in windows as long as fit.

Read next: `test_lm_eval.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import tiny
import torch

from minillm.data.batch import IGNORED, Batch
from minillm.evaluate import Evaluation, evaluate
from minillm.model.transformer import Transformer
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.config import ObjectiveConfig


def texts() -> list[str]:
    """Return odd strings, lines, and a text of several windows."""
    lines = [line for line in (tiny.SAMPLES / "weather.txt").read_text().splitlines() if line.strip()]
    return [*(text for text in tiny.ODD if text.strip()), *lines[:10], " ".join(lines[:10])]


def windows(ids: list[int], context: int, symbol: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (tokens, targets) that ask for each id once, the first behind `symbol`; the last window is a full one."""
    whole, done = [symbol, *ids], 0
    while done < len(ids):
        stop = min(done + context, len(ids))
        start = max(0, stop - context)
        yield whole[start:stop], [IGNORED] * (done - start) + whole[done + 1 : stop + 1]
        done = stop


def evaluated(model: Transformer, ids: list[list[int]], symbol: int, num_bytes: int | None = None) -> Evaluation:
    """Return what `minillm.evaluate` says of texts."""
    rows = [row for text in ids for row in windows(text, model.config.context, symbol)]
    tokens, targets = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row[n]) for row in rows], batch_first=True, padding_value=fill)
        for n, fill in enumerate((0, IGNORED))
    )
    lengths = torch.tensor([len(row) for row, _ in rows])
    batch = Batch(tokens=tokens, lengths=lengths, targets=targets)
    return evaluate(model, CausalLM(ObjectiveConfig()), [batch], num_bytes=num_bytes)


def log_likelihood(model: Transformer, ids: list[int], symbol: int) -> float:
    """Return log p of a text, in nats."""
    said = evaluated(model, [ids], symbol)
    return -said.loss * said.targets
