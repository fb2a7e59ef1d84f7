"""The section [scope]: which weights of a model are fine-tuned, and how fast each. Imports no torch.

Read next: `scope.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config import setting
from minillm.finetune.adapters.config import AdapterConfig


@dataclass(frozen=True, kw_only=True)
class ScopeConfig:
    """What trains beside the head, which always does. The default is everything, at one rate."""

    top_layers: int | None = setting(
        None, "layers that train, counted from the top; none: all, and the embeddings; 0: the head alone"
    )
    unfreeze_every: int = setting(
        0, "steps after which one more layer begins to train, from the head downwards; 0: all from the first step"
    )
    layer_decay: float = setting(
        1.0, "learning rate of a layer as a share of the next higher one's, in (0, 1]; 0.8 is common for small models"
    )
    reinit_layers: int = setting(0, "layers whose weights are drawn anew before training, counted from the top")

    def __post_init__(self) -> None:
        for name in ("top_layers", "unfreeze_every", "reinit_layers"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"scope.{name} must not be negative, got {value}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"scope.layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.top_layers is not None and self.reinit_layers > self.top_layers:
            raise ValueError(
                f"scope.reinit_layers ({self.reinit_layers}) are drawn at random and scope.top_layers "
                f"({self.top_layers}) train: the others would stay random; lower reinit_layers"
            )


def check_together(scope: ScopeConfig, adapter: AdapterConfig | None) -> None:
    """Raise ValueError where an adapter, which leaves the weights of the model alone, meets a scope that moves them.

    Layer-wise decay of the learning rate goes with both.
    """
    if adapter is None:
        return
    plain = ScopeConfig()
    given = [n for n in ("top_layers", "unfreeze_every", "reinit_layers") if getattr(scope, n) != getattr(plain, n)]
    if given:
        raise ValueError(
            f"scope.{given[0]} is about the model's own weights, and with an adapter ({adapter.kind}) they stay as "
            f"they are; leave out one of the two"
        )
