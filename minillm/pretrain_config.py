"""All settings of a pretraining run, section by section, and the presets. Imports nothing heavy: `--help` needs it.

Read next: `pretrain.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minillm.config import nearest, read_toml
from minillm.data.config import DataConfig
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.objectives.config import ObjectiveConfig
from minillm.tokenizer.config import TokenizerConfig
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.distributed_config import DistributedConfig

PRESETS = Path(__file__).parent / "presets"
QUICK_STEPS = 20  # of a run with QUICK=1 in the environment
Configuration = TypeVar("Configuration", bound=Any)  # of any kind of run
OBJECTIVE_OF = {"decoder": "causal_lm", "encoder": "masked_lm"}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides a pretraining run: with the same text, machine and packages it gives the same weights."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    objective: ObjectiveConfig
    train: TrainConfig
    optim: OptimConfig
    distributed: DistributedConfig

    def __post_init__(self) -> None:
        wanted = OBJECTIVE_OF[self.model.kind]
        if self.objective.name != wanted:
            raise ValueError(
                f"objective.name ({self.objective.name}) does not fit model.kind ({self.model.kind}); "
                f"a {self.model.kind} learns by {wanted}"
            )
        if self.model.head == "none":
            raise ValueError("model.head is none, and pretraining needs one; set it to linear or transform")


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_table(name: str) -> dict[str, Any]:
    """Return the table of a preset that comes with the package.

    Raises:
        InputError: no such preset; the nearest one is named.
    """
    if name not in preset_names():
        raise InputError(f"no preset {name!r}{nearest(name, preset_names())}")
    return read_toml(PRESETS / f"{name}.toml")


def rehearsal(config: Configuration, say: Callable[[str], object], *, done: int = 0) -> Configuration:
    """Return the configuration, cut to 20 more steps where QUICK=1 stands in the environment.

    Args:
        config: of a run that is about to begin or to go on; its section [train] says for how long.
        say: called with one line when something was cut.
        done: steps that the run has behind it.
    """
    steps, last = config.train.max_steps, done + QUICK_STEPS
    if os.environ.get("QUICK") != "1" or steps <= last:
        return config
    say(f"QUICK=1: a rehearsal that ends after {last} steps in place of {steps:,}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=last))
