"""Which settings a run that has begun may still change: those that leave its past as it was.

Read next: `config.py`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from minillm.config import override
from minillm.errors import InputError
from minillm.training.distributed_config import DistributedConfig

CHANGEABLE = ("train.max_steps", "train.patience", "train.log_every", "train.eval_every", "train.checkpoint_every")
CHANGEABLE += ("train.keep_checkpoints", "train.keep_best", "train.keep_every", "train.on_failed_write")
CHANGEABLE += ("train.on_non_finite", "train.max_skips", "train.max_skips_in_a_row", "train.deterministic")
CHANGEABLE += ("train.micro_batch_size", "train.device", "train.compute_dtype", "train.compile")
CHANGEABLE += ("train.threads", "train.checkpoint_activations")
CHANGEABLE += tuple(f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig))


def change(table: dict[str, Any], overrides: Mapping[str, Any], *, otherwise: str = "") -> None:
    """Put settings into the table of a run's configuration.

    Args:
        table: as its config.toml has it; changed in place.
        overrides: nested table of settings to change.
        otherwise: what who wants another setting can do; it ends the error's line.
    Raises:
        InputError: a setting that cannot change.
    """
    for section, settings in overrides.items():
        for key, value in settings.items() if isinstance(settings, dict) else ((None, settings),):
            name = section if key is None else f"{section}.{key}"
            if name not in CHANGEABLE:
                raise InputError(
                    f"{name} cannot change in a run that has begun; --resume takes {', '.join(CHANGEABLE)}{otherwise}"
                )
            override(table, name, value)


def changeable(config: Any) -> dict[str, Any]:
    """Return the settings of a run that `change` takes, as a nested table."""
    table: dict[str, Any] = {}
    for name in CHANGEABLE:
        override(table, name, operator.attrgetter(name)(config))
    return table
