"""How good the weights are now and then, and whether they were ever better. Looking changes nothing of what is learnt.

Read next: `trainer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from minillm.training.config import LOWER_IS_BETTER
from minillm.training.failures import not_finite
from minillm.training.random_state import random_kept

if TYPE_CHECKING:
    from minillm.training.trainer import Trainer


class Judge:
    """Evaluates the weights of a trainer, or their means, and keeps in its state which were best.

    step, score: of the last evaluation; None: it had no such figure. step is -1 before the first one.
    """

    def __init__(self, evaluate: Callable[[Any], Mapping[str, float | None]], best_by: str) -> None:
        """Remember what to ask and by which figure to choose; see `Trainer`."""
        self.evaluate, self.best_by = evaluate, best_by
        self.step: int = -1
        self.score: list[float] | None = None

    def look(self, trainer: Trainer) -> Mapping[str, float | None]:
        """Return the figures of this moment; the trainer's `state.since_best` is 0 where they are the best ones.

        Raises:
            InputError: the loss is not finite.
        """
        trainer.processes.at("evaluating")
        trainer.model.eval()
        try:
            with trainer.averaged(), torch.no_grad(), random_kept(trainer.device):
                valid = self.evaluate(trainer.model)
                trainer.processes.layout.settle()
        finally:
            trainer.model.train()
        state, loss, figure = trainer.state, valid["loss"], valid[self.best_by]
        if loss is None or not math.isfinite(loss):
            raise not_finite("the validation loss", state.step, trainer.safe_for_all())
        state.valid_loss = float(loss)
        self.step, self.score = state.step, None if figure is None else self.score_of(figure, loss)
        if self.score is not None and self.score > state.best_score:  # any list is above an empty one
            state.best_score, state.since_best = self.score, 0
        else:
            state.since_best += 1
        return valid

    def score_of(self, figure: float, loss: float) -> list[float]:
        """Return a score, higher is better: by the figure that `train.best_by` names, and among equals by the loss.

        Equals are many: an F1 is 0 until the first tag is found.
        """
        return [-float(figure) if self.best_by in LOWER_IS_BETTER else float(figure), -float(loss)]
