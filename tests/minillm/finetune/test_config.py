"""How long a run is and when it is judged, from epochs."""

import pytest

from minillm.finetune.config import FinetuneOptimConfig, FinetuneTrainConfig


@pytest.mark.parametrize(
    "sequences, given, expected",
    [
        pytest.param(48, {"epochs": 2.0}, (12, 3, 3), id="even"),
        pytest.param(10, {"epochs": 1.0}, (3, 2, 2), id="2.5 steps an epoch are 3"),
        pytest.param(10, {"epochs": 3.0, "evals_per_epoch": 1.0}, (8, 3, 3), id="the last one in the last step"),
        pytest.param(3, {"epochs": 2.0}, (2, 1, 1), id="an epoch has a step at least"),
        pytest.param(48, {"epochs": 0.5, "evals_per_epoch": 0.1}, (3, 3, 3), id="one evaluation at least"),
        pytest.param(48, {"max_steps": 7, "eval_every": 2}, (7, 2, 2), id="said in steps"),
        pytest.param(48, {"epochs": 2.0, "checkpoint_every": 5}, (12, 3, 5), id="a checkpoint by itself"),
    ],
)
def test_steps_of_a_run_by_hand(sequences, given, expected):
    """Steps, steps between evaluations and between checkpoints: every row is seen, and the last step is judged."""
    batch_size = 8 if sequences == 48 else 4
    found = FinetuneTrainConfig(batch_size=batch_size, **given).resolved(sequences, "accuracy")
    assert (found.max_steps, found.eval_every, found.checkpoint_every) == expected
    assert found.best_by == "accuracy"
    assert FinetuneTrainConfig(best_by="mcc").resolved(sequences, "accuracy").best_by == "mcc"


def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_said():
    assert FinetuneOptimConfig(warmup_fraction=0.06).resolved(50).warmup_steps == 3
    assert FinetuneOptimConfig(warmup_steps=7).resolved(50).warmup_steps == 7
