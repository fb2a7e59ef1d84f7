"""The learning rate against closed forms at its corners, and against PyTorch's own schedules."""

import math

import pytest
import torch

from minillm.training.config import OptimConfig
from minillm.training.schedule import learning_rate_share

CURVES = [
    pytest.param({"schedule": "constant"}, id="constant"),
    pytest.param({"schedule": "linear"}, id="linear"),
    pytest.param({"schedule": "cosine"}, id="cosine"),
    pytest.param({"schedule": "wsd"}, id="wsd-sqrt"),
    pytest.param({"schedule": "wsd", "decay_shape": "linear"}, id="wsd-linear"),
    pytest.param({"schedule": "inverse_sqrt"}, id="inverse-sqrt"),
]


def share(step, max_steps=100, **settings):
    return learning_rate_share(
        step, OptimConfig(**{"warmup_steps": 10, "min_learning_rate_ratio": 0.1} | settings), max_steps
    )


@pytest.mark.parametrize("settings", CURVES)
def test_warm_up_rises_in_equal_parts_to_the_peak(settings):
    assert [share(step, **settings) for step in range(10)] == [(step + 1) / 11 for step in range(10)]
    assert share(10, **settings) == 1.0


@pytest.mark.parametrize("settings", CURVES)
@pytest.mark.parametrize("max_steps", [1, 100])
def test_without_warm_up_the_first_step_has_the_peak(settings, max_steps):
    assert share(0, max_steps, warmup_steps=0, **settings) == 1.0


@pytest.mark.parametrize("settings", CURVES)
@pytest.mark.parametrize("warmup, max_steps", [(10, 10), (10, 5), (1, 1), (0, 1)])
def test_all_shares_are_in_0_to_1_also_where_the_run_ends_inside_the_warm_up(settings, warmup, max_steps):
    values = [share(step, max_steps, warmup_steps=warmup, **settings) for step in range(2 * max_steps + warmup + 3)]
    assert all(0.0 < value <= 1.0 for value in values)


@pytest.mark.parametrize("settings", CURVES)
def test_never_rises_after_the_warm_up_and_never_jumps(settings):
    values = [share(step, 10_000, **settings) for step in range(10, 10_050)]
    falls = [a - b for a, b in zip(values, values[1:], strict=False)]
    assert min(falls) >= 0
    assert max(falls) < 0.05  # the root in wsd and 1/sqrt begin steeply, by 0.9 * sqrt(1/2000) and 1 - sqrt(11/12)


@pytest.mark.parametrize("settings", CURVES[1:5])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_the_floor_belongs_to_the_end_and_stays(settings, floor):
    for step in (100, 101, 5000):
        assert share(step, min_learning_rate_ratio=floor, **settings) == pytest.approx(floor, abs=1e-15)


def test_closed_forms_in_the_middle():
    assert share(55, schedule="linear") == pytest.approx(0.55)  # half way from 10 to 100
    assert share(55, schedule="cosine") == pytest.approx(0.55)
    assert share(40, schedule="cosine") == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2)
    assert share(43, schedule="inverse_sqrt") == 0.5  # sqrt(11 / 44)


def test_wsd_holds_then_falls_over_its_last_share():
    assert [share(step, schedule="wsd", decay_fraction=0.2) for step in (10, 50, 79, 80)] == [1.0] * 4
    assert share(85, schedule="wsd", decay_fraction=0.2) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.25)))
    assert share(85, schedule="wsd", decay_fraction=0.2, decay_shape="linear") == pytest.approx(0.1 + 0.9 * 0.75)


@pytest.mark.parametrize("fraction, step, expected", [(0.0, 99, 1.0), (1.0, 10, 1.0), (1.0, 55, 0.55)])
def test_wsd_at_the_ends_of_its_fraction(fraction, step, expected):
    """0 never falls inside the run; 1 falls from the end of the warm-up on."""
    assert share(step, schedule="wsd", decay_fraction=fraction, decay_shape="linear") == pytest.approx(expected)


def test_linear_and_cosine_equal_pytorchs():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for name, theirs in (
        ("linear", torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=50)),
        ("cosine", torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50, eta_min=0.1)),
    ):
        optimiser.param_groups[0]["lr"] = 1.0
        for step in range(50):
            assert share(step, 50, schedule=name, warmup_steps=0) == pytest.approx(optimiser.param_groups[0]["lr"])
            optimiser.step()
            theirs.step()
