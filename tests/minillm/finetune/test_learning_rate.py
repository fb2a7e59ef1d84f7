"""The chosen learning rate: by hand for known weights, of the kinds that it is for, and never over what was said."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from minillm.checkpoint.run_folder import RunFolder
from minillm.config import read_toml
from minillm.errors import InputError
from minillm.finetune import learning_rate
from minillm.finetune.adapters.config import BitFitConfig, LoRAConfig
from minillm.finetune.learning_rate import matrix_rms, suitable_rate, with_learning_rate
from minillm.finetune.run import TWIN, finetune, prepared_run
from minillm.finetune.scope_config import ScopeConfig
from minillm.training.progress import Progress

QUIET = Progress(quiet=True)
LORA, BITFIT = LoRAConfig(), BitFitConfig()
EVERYTHING, HEAD_ALONE = ScopeConfig(), ScopeConfig(top_layers=0)


@pytest.fixture
def model_with(settings):
    """Return a function: root of the mean square -> a task model whose matrices in the blocks all have it."""

    def make(rms, **given):
        *_, model = prepared_run(settings(**given), QUIET)
        for name, weight in model.blocks.named_parameters():
            if weight.ndim == 2 and "adapters" not in name:
                weight.data.fill_(rms)
        return model

    return make


@pytest.mark.parametrize("rms", [0.02, 0.5])
def test_the_rate_of_everything_by_hand(model_with, rms):
    """5.5 RMS / (layers * width), to two digits."""
    model = model_with(rms)
    shape = model.config.backbone
    assert suitable_rate(model, EVERYTHING, None) == pytest.approx(
        5.5 * rms / (shape.num_layers * shape.width), rel=0.05
    )


ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (learning_rate.__doc__ or "").splitlines()
    if line.startswith("|") and "RMS" not in line and "---" not in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_of_the_page_is_what_the_rule_gives(monkeypatch, row):
    """From 2 layers of 128 to the 12 of 768 of BERT-base."""
    rms, layers, width, rate = (float(cell) for cell in row[1:5])
    monkeypatch.setattr(learning_rate, "matrix_rms", lambda model: rms)
    shape = SimpleNamespace(num_layers=int(layers), width=int(width))
    model = SimpleNamespace(config=SimpleNamespace(backbone=shape))
    assert len(ROWS) == 5 and suitable_rate(model, EVERYTHING, None) == rate


@pytest.mark.parametrize(
    "scope, adapter, times, at_most",
    [(EVERYTHING, LORA, 10, 0.01), (EVERYTHING, BITFIT, 50, 0.03), (HEAD_ALONE, None, 50, 0.03)],
)
def test_what_is_new_learns_faster_up_to_a_bound(model_with, scope, adapter, times, at_most):
    small, large = model_with(1e-4), model_with(1.0)
    assert suitable_rate(small, scope, adapter) == pytest.approx(
        times * suitable_rate(small, EVERYTHING, None), rel=0.1
    )
    assert suitable_rate(large, scope, adapter) == at_most


def test_top_layers_learn_as_everything_does(model_with):
    model = model_with(0.1)
    assert suitable_rate(model, ScopeConfig(top_layers=1), None) == suitable_rate(model, EVERYTHING, None)


@pytest.mark.parametrize("kind", ["lora", "houlsby", "prefix"])
def test_the_matrices_of_an_adapter_do_not_count(model_with, kind):
    """All of the model's are 0.1; what an adapter draws is smaller."""
    assert math.isclose(matrix_rms(model_with(0.1, adapter__kind=kind)), 0.1, rel_tol=1e-6)


def test_a_run_takes_the_rate_that_suits_it_and_leaves_one_that_is_given(settings):
    for given in (0.0, 0.25):
        config, *_, model = prepared_run(settings(optim__learning_rate=given), QUIET)
        assert config.optim.learning_rate == (given or suitable_rate(model, EVERYTHING, None))


@pytest.mark.parametrize(
    "given, ten_times",
    [
        ({"optim__learning_rate": 0.0}, True),
        ({}, False),
        ({"optim__learning_rate": 0.05, "optim__random_learning_rate": 0.005}, True),
    ],
    ids=["chosen", "one for both", "two"],
)
def test_a_twin_from_random_weights_has_a_rate_of_its_own(settings, tmp_path, monkeypatch, given, ten_times):
    """Weights of 0.2, the twin of 0.02: where no rate is given, a tenth is. The report says whether the two differ."""
    sizes = iter((0.2, 0.02))
    monkeypatch.setattr("minillm.finetune.learning_rate.matrix_rms", lambda model: next(sizes))
    monkeypatch.setattr("minillm.finetune.run.draw_plots", lambda folder: [])
    result = finetune(settings(against_random=True, train__max_steps=1, **given), tmp_path)
    assert result.contenders[-1].note.endswith("but the learning rate") == ten_times
    own, twin = (
        read_toml(RunFolder(folder).config_path)["optim"]["learning_rate"] for folder in (tmp_path, tmp_path / TWIN)
    )
    assert own / twin == pytest.approx(10.0 if ten_times else 1.0, rel=0.05)


def test_another_optimiser_has_no_chosen_rate(settings):
    config = settings(optim__learning_rate=0.0, optim__name="sgd")
    with pytest.raises(InputError, match="optim.learning_rate must be given with optim.name = sgd"):
        prepared_run(config, QUIET)


@pytest.mark.parametrize("size", [0.0, math.nan, math.inf])
def test_weights_without_a_size_have_no_rate(settings, model_with, size):
    config = settings(optim__learning_rate=0.0)
    with pytest.raises(InputError, match="all 0 or not finite"):
        with_learning_rate(config, model_with(size))


def test_a_given_rate_is_not_looked_at(settings):
    config, *_, model = prepared_run(settings(optim__name="sgd"), QUIET)
    assert with_learning_rate(config, model) is config
