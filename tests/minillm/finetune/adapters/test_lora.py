"""How LoRA and its kin begin, and how they drop."""

import copy
import dataclasses

import pytest
import torch
from minillm_kernels.dispatch import backend
from torch.nn import functional as F

from minillm.finetune.adapters.attach import attach, detach
from minillm.finetune.adapters.config import AdaLoRAConfig, LoRAConfig
from minillm.finetune.adapters.dora import DoRA
from minillm.finetune.adapters.lora import LoRA
from minillm.model.layers import Linear


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_A_is_drawn_from_one_over_the_root_of_in_whatever_the_rank(rank):
    """A stored the other way round would take its bound from the rank: 0.5 for a rank of 4."""
    torch.manual_seed(0)
    part = LoRA(Linear(400, 8), LoRAConfig(rank=rank), None)
    A, bound = part.A.weight, 400**-0.5
    assert A.abs().max() <= bound and A.abs().max() > 0.9 * bound
    assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert part.B.weight.eq(0).all()


CONFIGS = [
    pytest.param(LoRAConfig(rank=3, dropout=0.5), id="lora"),
    pytest.param(LoRAConfig(rank=3, dropout=0.5, dora=True), id="dora"),
    pytest.param(AdaLoRAConfig(rank=3, target_rank=2, dropout=0.5), id="adalora"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_dropout_is_a_function_of_the_seed_of_the_pass(stand_in, stir, batch, config):
    """In training mode alone; without a seed each pass draws one. Fused and plain drop the same."""
    model = stand_in("encoder-pre")
    attach(model, config)
    stir(model)
    still = model(**batch)
    assert torch.equal(model(**batch, seed=4), still)
    model.train()
    first = model(**batch, seed=4)
    assert torch.equal(model(**batch, seed=4), first) and torch.equal(model(**batch, seed=torch.tensor(4)), first)
    for other in (model(**batch, seed=5), model(**batch), still):
        assert not torch.equal(other, first)
    assert not torch.equal(model(**batch), model(**batch))
    with backend("reference"):
        torch.testing.assert_close(model(**batch, seed=4), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_blocks_that_are_computed_anew_drop_as_in_their_own_pass(stand_in, stir, batch, compiled):
    """Two passes of different seeds before one backward pass, as R-Drop makes them; the model drops nothing itself."""
    found = []
    for recompute in (False, True):
        backbone = stand_in("encoder-pre").backbone
        attach(backbone, LoRAConfig(rank=3, dropout=0.5))
        stir(backbone)
        if recompute:
            backbone.recompute_blocks()
        backbone.train()
        run = torch.compile(backbone, backend="aot_eager", fullgraph=True) if compiled else backbone
        first, second = (run(**batch, seed=torch.tensor(seed)) for seed in (4, 5))
        assert not torch.equal(first, second)
        (first.square().sum() + second.pow(3).sum()).backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) == 8
    for kept, anew in zip(*found, strict=True):
        torch.testing.assert_close(anew, kept, rtol=0, atol=0)


def test_dropout_leaves_the_mean_where_it_was(stand_in, stir):
    """What is added to q, over many seeds: its mean is what is added without dropout."""
    model = stand_in("encoder-pre", num_layers=1).backbone
    attach(model, LoRAConfig(rank=3, targets=("q",), dropout=0.5))
    stir(model)
    place = model.blocks[0].attention.q
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1)).abs()
    still = (place(x) - place.base(x)).mean(dim=0)
    model.train()
    model(torch.zeros(1, 1, dtype=torch.int64), seed=1)  # leaves its seed
    dropped = place(x) - place.base(x)
    error = dropped.std(dim=0) / 2000**0.5
    assert ((dropped.mean(dim=0) - still).abs() < 5 * error).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_dropout_acts_on_what_enters_the_update(stand_in, stir, config):
    """The weight itself sees all of x; what the update adds to it sees the elements of x that were kept."""
    model = stand_in("encoder-pre", num_layers=1).backbone
    attach(model, dataclasses.replace(config, targets=("q",)))
    stir(model)
    place = model.blocks[0].attention.q
    part, weight, bias = place.adapters["adapter"], place.base.weight, place.base.bias
    merged, _ = part.merged(weight, bias)
    own = weight
    if isinstance(part, DoRA):  # its gain scales the weight too
        own = (part.magnitude / (weight + part.product(weight)).norm(dim=1))[:, None] * weight
    model.train()(torch.zeros(1, 1, dtype=torch.int64), seed=1)  # leaves its seed
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    kept = part.dropout(x)
    assert kept.eq(0).any() and not kept.eq(0).all()
    torch.testing.assert_close(place(x), F.linear(x, own, bias) + F.linear(kept, merged - own), rtol=1e-4, atol=1e-5)


def test_each_place_and_adapter_drops_its_own_pattern(stand_in):
    """Of 4 places and 2 adapters no two patterns are alike."""
    model = stand_in("encoder-pre").backbone.train()
    for name in ("a", "b"):
        attach(model, LoRAConfig(rank=3, dropout=0.5), name=name)
    model(torch.zeros(1, 1, dtype=torch.int64), seed=1)
    drops = [part.dropout for part in model.modules() if isinstance(part, LoRA)]
    patterns = {tuple(drop(torch.ones(64)).tolist()) for drop in drops}
    assert len(drops) == len(patterns) == 8


def test_a_copy_of_the_model_has_dropout_of_its_own(stand_in, stir, batch):
    """The copy hears its own passes, and goes without them when its adapter is taken off."""
    model = stand_in("encoder-pre")
    attach(model, LoRAConfig(rank=3, dropout=0.5))
    stir(model)
    twin = copy.deepcopy(model).train()
    expected = twin(**batch, seed=4)
    model.train()(**batch, seed=9)
    assert torch.equal(twin(**batch, seed=4), expected)
    detach(twin)
    assert not twin.backbone._forward_pre_hooks and len(model.backbone._forward_pre_hooks) == 1
