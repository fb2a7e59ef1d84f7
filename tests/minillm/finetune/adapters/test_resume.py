"""Training with an adapter that was stopped goes on as if it had not been, to the bit."""

import pytest
import torch

from minillm.checkpoint.native import tensors_of
from minillm.finetune.adapters.adalora import RankAllocator, WithOrthogonality
from minillm.finetune.adapters.attach import attach
from minillm.finetune.adapters.config import AdaLoRAConfig, LoRAConfig, PrefixConfig

CONFIGS = [
    pytest.param(LoRAConfig(rank=3, dropout=0.3), id="lora-dropout"),
    pytest.param(LoRAConfig(rank=3, dora=True), id="dora"),
    pytest.param(AdaLoRAConfig(rank=3, target_rank=1, dropout=0.3, prune_every=2), id="adalora"),
    pytest.param(PrefixConfig(length=2, mlp_width=5), id="prefix-network"),
]
STEPS = 10


@pytest.fixture
def begin(stand_in, make_trainer, classify):
    """Return a function: configuration, folder -> a trainer of a freshly adapted model."""

    def make(config, folder):
        model = stand_in(dropout=0.1)
        torch.manual_seed(5)
        attach(model, config, name="mine")
        adaptive = isinstance(config, AdaLoRAConfig)
        objective = WithOrthogonality(classify, "mine") if adaptive else classify
        trainer = make_trainer(model, objective, folder=folder, max_steps=STEPS, checkpoint_every=6, keep_checkpoints=2)
        if adaptive:
            RankAllocator(model, "mine", steps=STEPS).connect(trainer)
        return trainer

    return make


@pytest.mark.parametrize("config", CONFIGS)
def test_stopped_and_resumed_is_not_stopped(begin, config):
    """Weights, running means and optimiser; for AdaLoRA the pruned triplets."""
    whole = begin(config, "run")
    start = {name: tensor.clone() for name, tensor in tensors_of(whole.model).items()}
    whole.fit()
    torch.manual_seed(99)  # the second half may not depend on the default generator
    again = begin(config, "again")
    again.folder = whole.folder
    assert again.resume(6) == 6
    again.fit()
    ends = tensors_of(whole.model), tensors_of(again.model)
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    moved = {name for name in start if not torch.equal(start[name], ends[0][name])}
    may = {name for name in start if ".adapters.mine." in name or name.startswith(("head.", "backbone.pooler."))}
    assert moved <= may and len(moved) > len(may) / 2
