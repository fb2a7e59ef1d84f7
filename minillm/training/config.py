"""How a model is trained: two sections, [train] for the run and [optim] for the optimiser and its schedule.

Read next: `schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from minillm.config import divisors, setting

Device = Literal["auto", "cpu", "cuda", "mps"]
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae")  # all other figures are better higher
Schedule = Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"]

SMALLEST = 2.0**-126  # eps: below it float32 has 0 in its place, or few digits, and divides by that
LARGEST = 1e30  # learning rate: beyond it float32 cannot hold what a step multiplies
MOST_THREADS = 4096  # of one op
MOST_ROWS = 2**31  # sequences in a batch; no machine takes so many


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`, 1 at least.

    >>> largest_divisor(12, 5), largest_divisor(12, 100), largest_divisor(7, 6), largest_divisor(7, 0)
    (4, 12, 1, 1)
    """
    return max((d for d in divisors(number) if d <= limit), default=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run: how much is seen per step, for how long, what is kept, and on which device."""

    batch_size: int = setting(32, "sequences per optimiser step, over all micro-batches")
    micro_batch_size: int | None = setting(
        None,
        "sequences on the device at once, a divisor of batch_size; none: all; but for dropout the gradient is the same",
    )
    max_steps: int = setting(1000, "optimiser steps of the whole run")
    eval_every: int = setting(250, "steps between evaluations; 0: only at the end")
    checkpoint_every: int = setting(250, "steps between checkpoints; 0: only at the end")
    keep_checkpoints: int = setting(1, "newest checkpoints that are kept, beside the best ones")
    keep_best: int = setting(1, "best checkpoints that are kept, by best_by")
    keep_every: int = setting(0, "checkpoints of steps that this number divides are kept for good; 0: none are")
    on_failed_write: Literal["go_on", "stop"] = setting(
        "go_on",
        "where the disk refuses a checkpoint or a row amid the run: go_on with a warning and try again, or stop",
    )
    best_by: str = setting(
        "loss", "figure of the evaluation that is best in the best checkpoint; losses and errors are better lower"
    )
    patience: int | None = setting(
        None, "evaluations without a better one after which the run ends; none: it goes on to max_steps"
    )
    log_every: int = setting(10, "steps between rows of metrics.csv")
    seed: int = setting(0, "of initial weights, data order, masking and dropout; below 2**63")
    device: Device = setting("auto", "auto (cuda, then mps, then cpu), cpu, cuda or mps")
    compute_dtype: ComputeDtype = setting(
        "auto",
        "dtype of activations: auto (bfloat16 where this width is faster in it), float32, bfloat16 or float16",
    )
    on_non_finite: Literal["stop", "skip"] = setting(
        "stop",
        "at a loss or gradient that is no finite number: stop, or skip the step (the device is awaited each step)",
    )
    max_skips: int = setting(100, "skip: steps that may be left out in the whole run before it stops")
    max_skips_in_a_row: int = setting(5, "skip: steps that may be left out one after the other before it stops")
    deterministic: bool = setting(
        False, "only algorithms that give the same bits again; slower on a GPU, and an op without one is an error"
    )
    grad_clip: float = setting(1.0, "largest norm of the whole gradient; 0: no clipping")
    checkpoint_activations: bool = setting(
        False, "keep only the inputs of each block and compute it anew for its gradient: less memory, a third more time"
    )
    ema_decay: float | None = setting(
        None, "decay of a running mean of the weights that is evaluated, saved and used in their place; none: no mean"
    )
    compile: bool = setting(
        False, "run the model through torch.compile: needs a C++ compiler, and the first step takes a minute or so"
    )
    threads: int | None = setting(None, "CPU threads of one op; none: PyTorch's own choice")

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_steps", "log_every", "keep_checkpoints", "keep_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_every", "checkpoint_every", "keep_every", "max_skips", "max_skips_in_a_row", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must not be negative, got {getattr(self, name)}")
        if self.batch_size >= MOST_ROWS:
            raise ValueError(f"train.batch_size must be below 2**31, got {self.batch_size}")
        if self.seed >= 2**63:
            raise ValueError(f"train.seed must be below 2**63 = {2**63}, got {self.seed}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"train.patience must be at least 1, got {self.patience}; leave it out to never stop early"
            )
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            bounds = "at least 1" if self.threads < 1 else f"at most {MOST_THREADS}"
            raise ValueError(f"train.threads must be {bounds}, got {self.threads}; leave it out for the default")
        if not 0.0 <= self.grad_clip < float("inf"):
            raise ValueError(f"train.grad_clip must be 0 or above, got {self.grad_clip}; 0 switches it off")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"train.ema_decay must be between 0 and 1, got {self.ema_decay}; leave it out for no mean")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            near = largest_divisor(self.batch_size, self.micro_batch_size)
            raise ValueError(
                f"train.micro_batch_size ({self.micro_batch_size}) must divide train.batch_size ({self.batch_size}); "
                f"try {near}"
            )

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in one optimiser step."""
        return 1 if self.micro_batch_size is None else self.batch_size // self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its learning rate over time; `schedule.py` has the curves, `optim.py` the decay rule."""

    name: Literal["adamw", "muon", "sgd"] = setting(
        "adamw", "adamw; muon for the matrices of linear layers with adamw for all else; or sgd with momentum"
    )
    learning_rate: float = setting(1e-3, "peak learning rate; muon: of the matrices, some 0.02")
    adamw_learning_rate: float | None = setting(
        None, "muon: peak learning rate of all that it leaves to adamw; none: learning_rate"
    )
    min_learning_rate_ratio: float = setting(
        0.1, "learning rate at the end as a share of the peak (cosine, linear, wsd), in [0, 1]"
    )
    warmup_steps: int = setting(100, "steps of linear rise; the peak learning rate comes right after them")
    schedule: Schedule = setting("cosine", "after the warm-up: cosine, linear, wsd, inverse_sqrt or constant")
    decay_fraction: float = setting(0.2, "wsd: share of max_steps, at the end, over which the rate falls, in [0, 1]")
    decay_shape: Literal["sqrt", "linear"] = setting("sqrt", "wsd: the rate falls as 1 - sqrt(x) or as 1 - x")
    weight_decay: float = setting(
        0.1, "decoupled decay (adamw, muon) or L2 term (sgd) of parameters with two axes or more"
    )
    beta1: float = setting(0.9, "adamw: decay of the gradient's running mean")
    beta2: float = setting(0.99, "adamw: decay of the squared gradient's running mean")
    eps: float = setting(1e-8, "adamw: added to the root of the squared gradient's mean")
    momentum: float = setting(0.9, "sgd and muon: momentum; 0: none")
    left_open: ClassVar[tuple[str, ...]] = ()  # numbers that may be 0: the run chooses them

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adamw_learning_rate", "eps"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf") and not (name in self.left_open and value == 0.0):
                raise ValueError(f"optim.{name} must be above 0, got {value}")
            if value is not None and value > LARGEST:
                raise ValueError(f"optim.{name} must be at most {LARGEST:g}, got {value}")
        if self.eps < SMALLEST:
            raise ValueError(
                f"optim.eps must be at least {SMALLEST:.2g}, as float32 is 0 below, got {self.eps}; try 1e-8"
            )
        if self.adamw_learning_rate is not None and self.name != "muon":
            raise ValueError(f"optim.adamw_learning_rate goes with muon, and optim.name is {self.name}; leave it out")
        for name in ("min_learning_rate_ratio", "decay_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"optim.{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"optim.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise ValueError(f"optim.weight_decay must be 0 or above, got {self.weight_decay}")
