"""What [train] and [optim] refuse, in words that name the setting."""

import pytest

from minillm.config import build
from minillm.errors import InputError
from minillm.training.config import OptimConfig, TrainConfig


@pytest.mark.parametrize(
    "cls, settings, words",
    [
        (TrainConfig, {"batch_size": 0}, "train.batch_size must be at least 1, got 0"),
        (TrainConfig, {"max_steps": -1}, "train.max_steps must be at least 1, got -1"),
        (TrainConfig, {"log_every": 0}, "train.log_every must be at least 1, got 0"),
        (TrainConfig, {"keep_checkpoints": 0}, "train.keep_checkpoints must be at least 1"),
        (TrainConfig, {"eval_every": -1}, "train.eval_every must not be negative"),
        (TrainConfig, {"seed": 2**63}, r"train.seed must be below 2\*\*63"),
        (TrainConfig, {"threads": 0}, "train.threads must be at least 1, got 0; leave it out"),
        (TrainConfig, {"threads": 10**6}, "train.threads must be at most 4096, got 1000000"),
        (TrainConfig, {"batch_size": 2**31}, r"train.batch_size must be below 2\*\*31"),
        (TrainConfig, {"max_skips": -1}, "train.max_skips must not be negative"),
        (TrainConfig, {"keep_best": 0}, "train.keep_best must be at least 1"),
        (OptimConfig, {"learning_rate": 1e300}, "optim.learning_rate must be at most 1e\\+30, got 1e\\+300"),
        (TrainConfig, {"grad_clip": float("nan")}, "train.grad_clip must be 0 or above, got nan"),
        (TrainConfig, {"ema_decay": 1.0}, "train.ema_decay must be between 0 and 1, got 1.0; leave it out"),
        (TrainConfig, {"ema_decay": 0.0}, "train.ema_decay must be between 0 and 1, got 0.0; leave it out"),
        (TrainConfig, {"batch_size": 12, "micro_batch_size": 5}, r"batch_size \(5\) must divide .* \(12\); try 4"),
        (TrainConfig, {"batch_size": 12, "micro_batch_size": 24}, "must divide .*; try 12"),
        (TrainConfig, {"batch_size": 12, "micro_batch_size": 0}, "must divide .*; try 1"),
        (TrainConfig, {"device": "tpu"}, "train.device takes one of auto, cpu, cuda, mps, got 'tpu'"),
        (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate must be above 0, got 0.0"),
        (OptimConfig, {"learning_rate": float("nan")}, "optim.learning_rate must be above 0, got nan"),
        (OptimConfig, {"eps": 1e-60}, "optim.eps must be at least 1.2e-38, as float32 is 0 below, got 1e-60; try 1e-8"),
        (OptimConfig, {"min_learning_rate_ratio": 1.5}, r"optim.min_learning_rate_ratio must be in \[0, 1\], got 1.5"),
        (OptimConfig, {"beta2": 1.0}, r"optim.beta2 must be in \[0, 1\), got 1.0"),
        (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps must not be negative"),
        (OptimConfig, {"weight_decay": -0.1}, "optim.weight_decay must be 0 or above, got -0.1"),
        (OptimConfig, {"schedule": "cosin"}, "optim.schedule takes one of cosine, linear"),
        (OptimConfig, {"lr": 1.0}, "unknown key optim.lr"),
    ],
)  # fmt: skip
def test_refused(cls, settings, words):
    with pytest.raises(InputError, match=words):
        build(cls, settings, prefix="train." if cls is TrainConfig else "optim.")


@pytest.mark.parametrize("batch, micro, k", [(8, None, 1), (8, 8, 1), (8, 2, 4), (1, 1, 1)])
def test_number_of_micro_batches(batch, micro, k):
    assert TrainConfig(batch_size=batch, micro_batch_size=micro).micro_batches == k
