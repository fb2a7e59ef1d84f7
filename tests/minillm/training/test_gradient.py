"""k micro-batches give the gradient of one batch; clipping is PyTorch's; an extra counts once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from minillm.data.batch import Batch
from minillm.training.gradient import add_gradient, clip_gradients, gradient_norm, targets_in, tokens_in

CPU = torch.device("cpu")


def uneven_batch(rows: int) -> Batch:
    """Row i has about i targets: a mean over micro-batches of their means would be another number."""
    generator = torch.Generator().manual_seed(rows)
    tokens = torch.randint(11, (rows, 7), generator=generator)
    place = torch.arange(7)
    targets = torch.where(place < torch.arange(rows)[:, None].clamp(max=7), tokens, -100)
    if rows == 1:
        targets[0, 0] = tokens[0, 0]
    return Batch(tokens=tokens, targets=targets)


def gradient_by_hand(model: nn.Module, objective, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean loss of all targets, and the gradient of it plus the penalty, by autograd on the whole batch."""
    loss = objective.step(model, batch)
    mean = loss.total / targets_in(batch)
    whole = mean if loss.extra is None else mean + loss.extra
    names, parameters = zip(*model.named_parameters(), strict=True)
    return mean.detach(), dict(zip(names, torch.autograd.grad(whole, parameters), strict=True))


@pytest.mark.parametrize("penalty", [0.0, 0.3], ids=["plain", "with-extra"])
@pytest.mark.parametrize("rows, k", [(12, 1), (12, 2), (12, 3), (12, 12), (5, 5), (1, 1)])
def test_micro_batches_give_the_gradient_of_one_batch(parts, rows, k, penalty):
    model, objective, batch = parts.Model(parts.Config(dropout=0.0)).double(), parts.Objective(penalty=penalty), None
    batch = uneven_batch(rows)
    mean, truth = gradient_by_hand(model, objective, batch)
    loss, excess = add_gradient(model, objective, batch, count=targets_in(batch), micro_batches=k, device=CPU)
    assert excess == 0
    torch.testing.assert_close(loss.double(), mean, rtol=1e-6, atol=0)  # summed in float32: it is only shown
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, truth[name], rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradient_is_added_to_what_is_there(parts):
    model, objective, batch = parts.Model(parts.Config(dropout=0.0)).double(), parts.Objective(), uneven_batch(4)
    for _ in range(2):
        add_gradient(model, objective, batch, count=targets_in(batch), micro_batches=2, device=CPU)
    _, truth = gradient_by_hand(model, objective, batch)
    torch.testing.assert_close(model.up.weight.grad, 2 * truth["up.weight"], rtol=1e-12, atol=1e-14)


def test_a_wrong_count_is_seen(parts):
    model, batch = parts.Model(parts.Config()), uneven_batch(4)
    _, excess = add_gradient(model, parts.Objective(), batch, count=targets_in(batch) - 2, micro_batches=2, device=CPU)
    assert excess == 2


def test_micro_batches_get_seeds_of_their_own(parts):
    seen = []

    class Spy(parts.Objective):
        def step(self, model, batch):
            seen.append(batch.seed)
            return super().step(model, batch)

    batch = replace(uneven_batch(4), seed=40)
    add_gradient(parts.Model(parts.Config()), Spy(), batch, count=6, micro_batches=4, device=CPU)
    assert len(set(seen)) == 4


def test_counts_of_targets_and_tokens():
    batch = Batch(tokens=torch.zeros(2, 3, dtype=torch.int64), targets=torch.tensor([[1, -100, 0], [-100] * 3]))
    assert (targets_in(batch), tokens_in(batch)) == (2, 6)
    assert tokens_in(replace(batch, lengths=torch.tensor([3, 1]))) == 4
    weights = torch.tensor([[0.5, 8.0, 0.25], [8.0] * 3])  # of places without a target none counts
    assert targets_in(replace(batch, weights=weights)) == 0.75
    with pytest.raises(ValueError, match="must return a batch with targets"):
        targets_in(replace(batch, targets=None))


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e6], ids=["clips-much", "clips", "leaves"])
def test_clipping_equals_torch(limit):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (1,), ()]
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):  # the last one has no gradient
        a.grad = torch.randn(a.shape, generator=generator)
        b.grad = a.grad.clone()
    norm = gradient_norm(ours)
    clip_gradients(ours, norm, limit)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, limit))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:-1], theirs[:-1], strict=True))


def test_limit_zero_clips_nothing():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    norm = gradient_norm([parameter])
    clip_gradients([parameter], norm, 0.0)
    assert norm == 50.0
    assert parameter.grad.tolist() == [30.0, 40.0]
