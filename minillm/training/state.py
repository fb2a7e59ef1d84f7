"""Where a run stands, beside its tensors: what a checkpoint keeps in state.json, and what a run reports at its end.

Read next: `trainer.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm.errors import InputError

KINDS: dict[str, Callable[[Any], bool]] = {  # annotation of a counter -> whether a value from JSON is one
    "int": lambda value: type(value) is int,
    "float | None": lambda value: value is None or type(value) is float,
    "list[float]": lambda value: type(value) is list and all(type(item) is float for item in value),
}


@dataclass(kw_only=True)
class RunState:
    """The counters of a run; the data position is among them, since a batch is a pure function of the step.

    step: optimiser steps done, empty ones included.
    tokens: seen until then; padding is not counted.
    empty_steps: steps whose batch had no target.
    train_loss: mean over the targets of the last batch whose loss was read, in nats; None: none yet.
    valid_loss: of the last evaluation.
    best_score: of the best evaluation so far, see `Judge.score_of`; empty: there was none.
    since_best: evaluations after that one.
    skipped_steps, skipped_in_a_row: steps left out because their numbers were not finite, in all and just now.
    recent_losses, recent_norms: of the last steps that were read, oldest first; see `deviation.py`.
    """

    step: int = 0
    tokens: int = 0
    empty_steps: int = 0
    train_loss: float | None = None
    valid_loss: float | None = None
    best_score: list[float] = field(default_factory=list)
    since_best: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    recent_norms: list[float] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        """Return the counters as JSON can hold them; `from_table` turns them back into equal ones."""
        return dataclasses.asdict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, source: object) -> RunState:
        """Return the state in a table; other keys in it are left to their owners.

        Raises:
            InputError: a counter is missing or not a number; the text names `source`.
        """
        for name, hint in cls.__annotations__.items():
            value = table.get(name, "nothing")
            if not KINDS[hint](value):
                raise InputError(f"{source} is damaged: {name} is {value!r}; use another checkpoint")
        return cls(**{field.name: table[field.name] for field in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a call of `Trainer.fit` ended.

    steps, tokens: of the whole run, earlier sessions included; padding is not counted.
    seconds: of this call, all included.
    tokens_per_second, steps_per_second: of this call's training, evaluation and saving left out.
    train_loss: of the last step whose loss was read; valid_loss: of the last evaluation; nats per target, None: none.
    stopped_early: by Ctrl-C or SIGTERM; signal: the number of the one that came.
    out_of_patience: after `train.patience` evaluations without a better one.
    """

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    steps_per_second: float
    train_loss: float | None
    valid_loss: float | None
    stopped_early: bool
    out_of_patience: bool
    signal: int | None = None
