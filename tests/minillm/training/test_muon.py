"""Muon's steps equal torch.optim.Muon's, its directions are near the orthogonal matrix, and AdamW has all the rest."""

import pytest
import torch
from torch import nn

from minillm.training.config import OptimConfig
from minillm.training.muon import Muon, orthogonalised
from minillm.training.optim import make_optimiser, optimiser_tensors, put_optimiser_tensors, set_learning_rate

SHAPES = [
    pytest.param((3, 5), id="wide"),
    pytest.param((7, 2), id="tall"),
    pytest.param((4, 4), id="square"),
    pytest.param((1, 1), id="one"),
    pytest.param((1, 9), id="row"),
]


def random(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_directions_stay(shape):
    """The truth is U V^T of the singular value decomposition in float64."""
    matrix = random(shape, seed=0, dtype=torch.float64)
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    assert (S > 0.003 * S.norm()).all()  # else the promise does not hold
    (found,) = orthogonalised([matrix], torch.float64)
    diagonal = U.T @ found @ Vt.T
    assert ((diagonal.diagonal() > 0.68) & (diagonal.diagonal() < 1.21)).all()
    torch.testing.assert_close(diagonal, diagonal.diagonal().diag(), rtol=0, atol=1e-12)  # rounding in float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_stack_gives_what_each_matrix_gives_alone(dtype):
    matrices = [random((3, 5), seed) for seed in range(4)]
    together = orthogonalised(matrices, dtype)
    for matrix, found in zip(matrices, together, strict=True):
        (alone,) = orthogonalised([matrix], dtype)
        torch.testing.assert_close(found, alone, rtol=0, atol=8 * torch.finfo(dtype).eps)  # order of the sums


def test_size_of_the_gradient_does_not_matter_and_zero_gives_zero():
    matrix = random((3, 5), seed=1)
    small, large, zero = orthogonalised([matrix * 2**-10, matrix * 2**10, matrix * 0], torch.float32)
    assert torch.equal(small, large)  # powers of two change no digit
    assert torch.equal(zero, torch.zeros(3, 5))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_equal_torchs_muon(decay):
    """torch.optim.Muon multiplies in bfloat16 one matrix at a time; four steps of both differ by its rounding."""
    shapes = [(3, 5), (7, 2), (3, 5), (4, 4)]
    ours = [nn.Parameter(random(shape, seed)) for seed, shape in enumerate(shapes)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    group = {"params": ours, "matrices": True, "momentum": 0.9, "weight_decay": decay}
    muon = Muon([group], lr=0.02, product_dtype=torch.bfloat16)
    truth = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=decay)
    for step in range(4):
        for number, parameters in enumerate(zip(ours, theirs, strict=True)):
            for parameter in parameters:
                parameter.grad = random(parameter.shape, seed=10 * step + number)
        muon.step()
        truth.step()
        for mine, other in zip(ours, theirs, strict=True):
            # a step is 0.02 * sqrt(rows / columns) * direction, and a direction is off by some 2^-8 * 5 iterations
            torch.testing.assert_close(mine, other, rtol=0, atol=(step + 1) * 0.02 * 2 * 5 * 2**-8)
    moved = max(
        float((m.detach() - random(s, n)).abs().max()) for n, (m, s) in enumerate(zip(ours, shapes, strict=True))
    )
    assert moved > 0.03  # the steps were many times larger than what is allowed


@pytest.mark.parametrize("shape", SHAPES)
def test_decay_takes_its_share_of_the_weights_as_they_were(shape):
    """Equation (4): beside a step without decay, eta lambda W is missing, whatever the direction."""
    begun = random(shape, seed=3, dtype=torch.float64)
    ends = []
    for decay in (0.0, 0.3):
        parameter = nn.Parameter(begun.clone())
        parameter.grad = random(shape, seed=4, dtype=torch.float64)
        group = {"params": [parameter], "matrices": True, "momentum": 0.9, "weight_decay": decay}
        Muon([group], lr=0.5, product_dtype=torch.float64).step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0] - ends[1], 0.5 * 0.3 * begun, rtol=0, atol=1e-12)  # rounding in float64


def test_linear_layers_go_to_muon_and_all_else_to_adamw(parts):
    """The groups by name: rates, decay, momentum."""
    model = parts.Model(parts.Config())
    config = OptimConfig(
        name="muon", learning_rate=0.02, adamw_learning_rate=0.003, momentum=0.95, weight_decay=0.1, beta2=0.95
    )
    optimiser = make_optimiser(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[p]: (group["matrices"], group["peak_lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for p in group["params"]
    }
    assert found == {
        "up.weight": (True, 0.02, 0.1),
        "embedding.weight": (False, 0.003, 0.1),
        "norm.weight": (False, 0.003, 0.0),
        "norm.bias": (False, 0.003, 0.0),
        "up.bias": (False, 0.003, 0.0),
    }


def test_what_is_no_matrix_steps_as_adamw(parts):
    """Embeddings, norms and biases move exactly as under AdamW alone."""
    model, other = parts.Model(parts.Config()), parts.Model(parts.Config())
    muon = make_optimiser(model, OptimConfig(name="muon", learning_rate=0.02, adamw_learning_rate=0.003))
    adamw = make_optimiser(other, OptimConfig(name="adamw", learning_rate=0.003))
    for step, share in enumerate((0.5, 1.0, 0.25)):
        for each, optimiser in ((model, muon), (other, adamw)):
            for number, parameter in enumerate(each.parameters()):
                parameter.grad = random(parameter.shape, seed=100 * step + number)
            set_learning_rate(optimiser, share)
            optimiser.step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs) == (name != "up.weight"), name


def test_state_goes_by_name_and_comes_back(parts):
    """A second optimiser with the state of the first takes the same next step, bit for bit."""
    config = OptimConfig(name="muon", learning_rate=0.02, adamw_learning_rate=0.003)
    models = [parts.Model(parts.Config()) for _ in range(2)]
    optimisers = [make_optimiser(model, config) for model in models]

    def step(which, seed):
        for number, parameter in enumerate(models[which].parameters()):
            parameter.grad = random(parameter.shape, seed + number)
        optimisers[which].step()

    step(0, 0)
    tensors = optimiser_tensors(optimisers[0], models[0])
    assert "momentum_buffer.up.weight" in tensors and "exp_avg.embedding.weight" in tensors
    models[1].load_state_dict(models[0].state_dict())
    put_optimiser_tensors(optimisers[1], models[1], tensors, source="a file")
    for which in (0, 1):
        step(which, 50)
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(mine, other)


def test_a_matrix_without_a_gradient_stays():
    parameter = nn.Parameter(torch.ones(2, 3))
    Muon([{"params": [parameter], "matrices": True, "momentum": 0.9}], product_dtype=torch.float32).step()
    assert torch.equal(parameter, torch.ones(2, 3))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"Muon takes matrices, got a parameter of shape \(3,\)"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "matrices": True}], product_dtype=torch.float32)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="optim.adamw_learning_rate goes with muon"):
        OptimConfig(name="adamw", adamw_learning_rate=0.01)
