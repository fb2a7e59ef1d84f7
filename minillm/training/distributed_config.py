"""How several processes share a run: the section [distributed]. Without torchrun nothing here is looked at.

Read next: `distributed.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from minillm.config import setting

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets for each process
LONGEST = 1e9  # seconds, 32 years; clocks count nanoseconds in 63 bits
CommunicatedDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """What each process of a run holds, and in which numbers they exchange it."""

    strategy: Literal["ddp", "fsdp", "hybrid"] = setting(
        "ddp",
        "ddp: every process holds the whole model; fsdp: a share of weights, gradients and optimiser state; hybrid: "
        "fsdp inside groups of shard_size processes, ddp between them",
    )
    shard_size: int | None = setting(
        None, "hybrid: processes that share one copy of the model, a divisor of all; none: those of one machine"
    )
    param_dtype: CommunicatedDtype = setting(
        "float32", "fsdp and hybrid: dtype in which weights are gathered and used; bfloat16 halves the traffic"
    )
    reduce_dtype: CommunicatedDtype = setting("float32", "dtype in which gradients are summed over processes")
    checkpoint: Literal["whole", "sharded"] = setting(
        "whole",
        "fsdp and hybrid: whole: the first process gathers and writes all; sharded: each process writes its share of "
        "the optimiser's state. Both are safetensors, and both go on with any number of processes",
    )
    timeout: float = setting(600.0, "seconds after which a process that holds up the others is named and the run ends")

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.strategy != "hybrid":
            raise ValueError(
                f"distributed.shard_size goes with hybrid, and distributed.strategy is {self.strategy}; leave it out"
            )
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"distributed.shard_size must be at least 1, got {self.shard_size}")
        if self.strategy == "ddp":
            for name, plain in (("param_dtype", "float32"), ("checkpoint", "whole")):
                if getattr(self, name) != plain:
                    raise ValueError(
                        f"distributed.{name} = {getattr(self, name)} goes with fsdp and hybrid, and "
                        f"distributed.strategy is ddp; leave it out"
                    )
        if not 1.0 <= self.timeout <= LONGEST:
            bounds = f"at most {LONGEST:g} seconds" if self.timeout > LONGEST else "1 second or more"
            raise ValueError(f"distributed.timeout must be {bounds}, got {self.timeout}")


def is_launched() -> bool:
    """Return whether torchrun, or whoever sets the same variables, started this process as one of several."""
    return all(name in os.environ for name in LAUNCHED)


def is_first() -> bool:
    """Return whether this process speaks for its run: the only one, or rank 0."""
    return not is_launched() or os.environ["RANK"] == "0"


def is_restarted() -> bool:
    """Return whether torchrun started the processes again after one of them was lost."""
    return is_launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
