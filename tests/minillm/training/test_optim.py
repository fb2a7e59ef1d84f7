"""Which parameters decay; steps equal PyTorch's own optimisers; the state goes by name and comes back."""

import copy

import pytest
import torch
from torch import nn

from minillm.errors import InputError
from minillm.training.config import OptimConfig
from minillm.training.optim import make_optimiser, optimiser_tensors, put_optimiser_tensors, set_learning_rate

KINDS = [
    pytest.param(OptimConfig(name="adamw", beta1=0.8, beta2=0.95, eps=0.1), id="adamw"),
    pytest.param(OptimConfig(name="sgd"), id="sgd-momentum"),
    pytest.param(OptimConfig(name="sgd", momentum=0.0), id="sgd"),
]


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_only_parameters_with_two_axes_decay(parts):
    model = parts.Model(parts.Config())
    groups = make_optimiser(model, OptimConfig(weight_decay=0.3)).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {"embedding.weight": 0.3, "up.weight": 0.3, "norm.weight": 0.0, "norm.bias": 0.0, "up.bias": 0.0}


def test_frozen_parameters_are_left_out_and_none_is_an_error(parts):
    model = parts.Model(parts.Config())
    model.embedding.weight.requires_grad_(False)
    held = [p for group in make_optimiser(model, OptimConfig()).param_groups for p in group["params"]]
    assert len(held) == 4 and all(p is not model.embedding.weight for p in held)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimiser(model, OptimConfig())


@pytest.mark.parametrize("config", KINDS)
def test_steps_equal_pytorchs_plain_optimiser(parts, config):
    """The truth is PyTorch's loop over single tensors in float64, with the decay set by hand for each parameter."""
    model, truth = parts.Model(parts.Config()), parts.Model(parts.Config()).double()
    ours = make_optimiser(model, config)
    groups = [{"params": [p], "weight_decay": config.weight_decay if p.ndim > 1 else 0.0} for p in truth.parameters()]
    if config.name == "adamw":
        theirs = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, foreach=False)
    else:
        theirs = torch.optim.SGD(groups, momentum=config.momentum, foreach=False)
    for step, share in enumerate((0.5, 1.0, 0.25, 0.1)):
        for each in (model, truth):
            set_gradients(each, step)
        set_learning_rate(ours, share)
        for group in theirs.param_groups:
            group["lr"] = share * config.learning_rate
        ours.step()
        theirs.step()
    for a, b in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=1e-7)  # a few roundings of float32


@pytest.mark.parametrize("config", KINDS)
def test_state_by_name_goes_on_bit_for_bit(parts, config):
    model, other = parts.Model(parts.Config()), parts.Model(parts.Config())
    first, second = make_optimiser(model, config), make_optimiser(other, config)
    for step in range(3):
        set_gradients(model, step)
        first.step()
    other.load_state_dict(model.state_dict())
    tensors = optimiser_tensors(first, model)
    put_optimiser_tensors(second, other, tensors, source="file")
    assert all(name.partition(".")[2] in dict(model.named_parameters()) for name in tensors)
    assert bool(tensors) == (config.name == "adamw" or config.momentum > 0)
    for each, optimiser in ((model, first), (other, second)):
        set_gradients(each, 7)
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_state_put_back_is_a_copy(parts):
    model = parts.Model(parts.Config())
    optimiser = make_optimiser(model, OptimConfig())
    tensors = {"exp_avg.up.bias": torch.ones(6), "exp_avg_sq.up.bias": torch.ones(6), "step.up.bias": torch.tensor(1.0)}
    put_optimiser_tensors(optimiser, model, tensors, source="file")
    model.up.bias.grad = torch.full((6,), 5.0)
    optimiser.step()
    assert all(tensor.eq(1).all() for tensor in tensors.values())


@pytest.mark.parametrize(
    "key, tensor, words",
    [
        ("exp_avg.up.weight", torch.zeros(2, 3), r"exp_avg.up.weight \(2, 3\) in the file, \(6, 6\) in the model"),
        ("exp_avg.down.weight", torch.zeros(2), r"exp_avg.down.weight \(2,\) in the file, no such parameter"),
    ],
    ids=["shape", "name"],
)
def test_state_of_another_model_is_refused(parts, key, tensor, words):
    model = parts.Model(parts.Config())
    optimiser = make_optimiser(model, OptimConfig())
    with pytest.raises(InputError, match=words):
        put_optimiser_tensors(optimiser, model, {"exp_avg.up.bias": torch.ones(6), key: tensor}, source="file")
    assert not optimiser.state


def test_learning_rate_is_each_groups_share_of_its_own_peak(parts):
    optimiser = make_optimiser(parts.Model(parts.Config()), OptimConfig(learning_rate=0.4))
    optimiser.param_groups[1]["peak_lr"] = 0.2
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.2, 0.1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_scaled_rate_is_a_share_of_what_the_parameter_had(parts, name):
    """Peak and decay of every parameter: its own, times its scale; the decay rule does not change."""
    config = OptimConfig(
        name=name, learning_rate=0.4, weight_decay=0.3, adamw_learning_rate=0.2 if name == "muon" else None
    )
    model = parts.Model(parts.Config())
    names = {parameter: name for name, parameter in model.named_parameters()}

    def settings(scales):
        groups = make_optimiser(model, config, scales).param_groups
        return {names[p]: (g["peak_lr"], g["weight_decay"], g.get("matrices")) for g in groups for p in g["params"]}

    plain, scales = settings(None), {"embedding.weight": 0.5, "up.bias": 0.5, "up.weight": 0.25}
    assert settings(scales) == {
        name: (rate * scales.get(name, 1.0), decay, matrices) for name, (rate, decay, matrices) in plain.items()
    }
    assert plain["embedding.weight"][0] == (0.2 if name == "muon" else 0.4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_with_scaled_rates_moves_each_parameter_as_its_own_rate_would(parts, name):
    """The truth is an optimiser whose whole rate is the scaled one; each parameter is compared with its own."""
    start = parts.Model(parts.Config())
    set_gradients(start, 0)
    scales = {"embedding.weight": 0.5, "up.weight": 0.25, "up.bias": 0.5}

    def stepped(rate, scales=None):
        model = copy.deepcopy(start)
        for mine, theirs in zip(model.parameters(), start.parameters(), strict=True):
            mine.grad = theirs.grad.clone()
        optimiser = make_optimiser(model, OptimConfig(name=name, learning_rate=rate), scales)
        set_learning_rate(optimiser, 1.0)
        optimiser.step()
        return dict(model.named_parameters())

    ours = stepped(0.01, scales)
    for parameter_name, parameter in ours.items():
        truth = stepped(0.01 * scales.get(parameter_name, 1.0))[parameter_name]
        assert torch.equal(parameter, truth), parameter_name


def test_state_with_scaled_rates_goes_by_name_to_an_optimiser_without(parts):
    """Groups differ, names do not: the state of one fits the other."""
    model = parts.Model(parts.Config())
    scaled, plain = make_optimiser(model, OptimConfig(), {"up.weight": 0.5}), make_optimiser(model, OptimConfig())
    set_gradients(model, 0)
    scaled.step()
    tensors = optimiser_tensors(scaled, model)
    put_optimiser_tensors(plain, model, tensors, source="file")
    again = optimiser_tensors(plain, model)
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[name], again[name]) for name in tensors)


@pytest.mark.parametrize("scales", [{"up.wait": 0.5}, {"up.weight": 0.0}], ids=["no-such-parameter", "zero"])
def test_a_scale_that_names_nothing_or_stops_is_refused(parts, scales):
    with pytest.raises(ValueError, match="rate_scales takes names of parameters and shares above 0"):
        make_optimiser(parts.Model(parts.Config()), OptimConfig(), scales)
