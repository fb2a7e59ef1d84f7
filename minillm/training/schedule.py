r"""The learning rate as a pure function of the step: a warm-up, then one of five curves.

With s = 0, 1, ... the step about to be taken, W = warmup_steps, M = max_steps, r = min_learning_rate_ratio, and
x the share of the way from W to M, the share of the peak is

    warm-up       (s + 1) / (W + 1)                         for s < W; it would reach 1 at s = W
    constant      1
    linear        r + (1 - r) * (1 - x),                    x = (s - W) / (M - W)
    cosine        r + (1 - r) * (1 + cos(pi * x)) / 2
    wsd           1 until D = M - round(decay_fraction * M), or W where that is later, then
                  r + (1 - r) * (1 - sqrt(x)) or (1 - x),   x = (s - D) / (M - D)
    inverse_sqrt  sqrt((W + 1) / (s + 1))

All are continuous at their breakpoints; r itself belongs to s = M, one past the last step. A run with M <= W ends
inside its warm-up.

Read next: `muon.py`.
"""

from __future__ import annotations

import math

from minillm.training.config import OptimConfig


def learning_rate_share(step: float, config: OptimConfig, max_steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    Args:
        step: steps done before this one, from 0; past `max_steps` the last value stays (inverse_sqrt falls on).
        config: schedule, warmup_steps, min_learning_rate_ratio, decay_fraction, decay_shape.
        max_steps: steps of the whole run.
    Returns:
        a number in [0, 1]; times `config.learning_rate` it is the learning rate.

    Source: the warm-up and cosine of nanoGPT; inverse_sqrt of Vaswani et al. (2017), arXiv:1706.03762, counted from
    1; wsd of Hu et al. (2024), arXiv:2404.06395, its 1 - sqrt of Hägele et al. (2024), arXiv:2405.18392.

    >>> config = OptimConfig(schedule="linear", warmup_steps=1, min_learning_rate_ratio=0.0)
    >>> [learning_rate_share(step, config, max_steps=5) for step in range(5)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    warmup, floor = config.warmup_steps, config.min_learning_rate_ratio
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.schedule:
        case "constant":
            return 1.0
        case "inverse_sqrt":
            return math.sqrt((warmup + 1) / (step + 1))
        case "linear":
            return floor + (1 - floor) * (1 - share_done(step, warmup, max_steps))
        case "cosine":
            return floor + (1 - floor) * (1 + math.cos(math.pi * share_done(step, warmup, max_steps))) / 2
        case "wsd":
            start = max(warmup, max_steps - round(config.decay_fraction * max_steps))
            x = share_done(step, start, max_steps)
            return floor + (1 - floor) * (1 - (math.sqrt(x) if config.decay_shape == "sqrt" else x))


def share_done(step: float, start: int, stop: int) -> float:
    """Return how far `step` is from `start` to `stop`, held in [0, 1]; 0 before `start`, also where both are one."""
    return min(max(step - start, 0) / max(stop - start, 1), 1.0)
