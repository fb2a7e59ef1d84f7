"""Which regularisers a run has: the section [regulariser].

Read next: `../augmentation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minillm.config import setting

if TYPE_CHECKING:
    from minillm.training.gradient import Objective


@dataclass(frozen=True, kw_only=True)
class RegulariserConfig:
    """What is added to the task's loss in training; all are off by default."""

    r_drop: float = setting(0.0, "weight of R-Drop's divergence between two passes, 1 to 5 is usual; 0: no second pass")
    adversarial: float = setting(0.0, "length of FGM's shift of a text's embedding output; 0: none")
    adversarial_steps: int = setting(1, "1: FGM; more: PGD with as many steps")

    def __post_init__(self) -> None:
        for name in ("r_drop", "adversarial"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"regulariser.{name} must be 0 or above, got {getattr(self, name)}")
        if self.adversarial_steps < 1:
            raise ValueError(f"regulariser.adversarial_steps must be at least 1, got {self.adversarial_steps}")
        if self.adversarial_steps > 1 and self.adversarial == 0.0:
            raise ValueError(
                f"regulariser.adversarial_steps is {self.adversarial_steps}, and regulariser.adversarial is 0: no step "
                "is taken; set the length of the shift, or leave the steps out"
            )


def regularised(task: Any, config: RegulariserConfig) -> Objective:
    """Return the objective that is trained: adversarial training around R-Drop around the task, what is asked for.

    Both together have 2 (K + 1) passes forward a step: the shift then hurts both dropout patterns of R-Drop.
    """
    from minillm.finetune.regularisers.adversarial import Adversarial
    from minillm.finetune.regularisers.r_drop import RDrop

    objective = task if config.r_drop == 0.0 else RDrop(task, config.r_drop)
    if config.adversarial == 0.0:
        return objective
    return Adversarial(objective, config.adversarial, config.adversarial_steps)
