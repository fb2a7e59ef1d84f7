"""Equal weights give the outputs of PEFT's layers, and AdaLoRA the choices of PEFT's allocator."""

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model, inject_adapter_in_model
from peft import IA3Config as PeftIA3Config
from peft import LoraConfig as PeftLoraConfig
from torch import nn

from minillm.finetune.adapters.adalora import RankAllocator, orthogonality, updates
from minillm.finetune.adapters.attach import attach
from minillm.finetune.adapters.config import AdaLoRAConfig, IA3Config, LoRAConfig
from minillm.finetune.adapters.places import places


class Theirs(nn.Module):
    """The targets of one block as plain layers with the weights of ours."""

    def __init__(self, backbone) -> None:
        super().__init__()
        attention, mlp = backbone.blocks[0].attention, backbone.blocks[0].mlp
        for name, ours in (("q", attention.q), ("v", attention.v), ("down", mlp.down)):
            layer = nn.Linear(ours.in_features, ours.out_features)
            layer.load_state_dict(ours.state_dict())
            setattr(self, name, layer)
        self.tokens = nn.Embedding.from_pretrained(backbone.embeddings.tokens.weight.detach().clone())

    def forward(self, x):
        return self.down(x)


def ours_and_theirs(model, config, peft_config, targets):
    """Attach both, and pair our places with PEFT's layers."""
    theirs = inject_adapter_in_model(peft_config, Theirs(model.backbone))
    attach(model, config)
    return [(places(model)[path], getattr(theirs, path.rpartition(".")[2])) for path in targets]


def give(ours, theirs):
    """Random values for the same weights on both sides, in their shapes."""
    with torch.no_grad():
        for parameter, peer in zip(ours, theirs, strict=True):
            parameter.copy_(torch.randn(parameter.shape))
            peer.copy_(parameter.reshape(peer.shape))


def assert_same(ours, theirs, x):
    """Forward and gradient of the input."""
    mine, peer = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, truth = ours(mine), theirs(peer)
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    truth.square().sum().backward()
    torch.testing.assert_close(mine.grad, peer.grad, rtol=1e-4, atol=1e-4)


LINEAR = ("blocks.0.attention.q", "blocks.0.mlp.down")


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("stabilised", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
def test_lora_and_dora(stand_in, dora, stabilised):
    """Outputs, gradients of the input and of every weight, and what is merged."""
    model = stand_in("encoder-pre", num_layers=1)
    settings = {"r": 3, "lora_alpha": 5, "use_rslora": stabilised, "use_dora": dora}
    peft_config = PeftLoraConfig(target_modules=["q", "down"], **settings)
    config = LoRAConfig(targets=("q", "down"), rank=3, alpha=5.0, rank_stabilised=stabilised, dora=dora)
    for place, peer in ours_and_theirs(model, config, peft_config, LINEAR):
        part = place.adapters["adapter"]
        mine, theirs = [part.A.weight, part.B.weight], [peer.lora_A.default.weight, peer.lora_B.default.weight]
        if dora:
            mine, theirs = [*mine, part.magnitude], [*theirs, peer.lora_magnitude_vector.default.weight]
            torch.testing.assert_close(part.magnitude, theirs[-1])  # before it is moved
        give(mine, theirs)
        assert_same(place, peer, torch.randn(2, 5, place.base.in_features))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        peer.merge()
        place.merge()
        torch.testing.assert_close(place.base.weight, peer.base_layer.weight, rtol=1e-5, atol=1e-5)


def test_lora_on_a_table(stand_in):
    """PEFT keeps A as (r, V)."""
    model = stand_in("encoder-pre", num_layers=1)
    peft_config = PeftLoraConfig(target_modules=["tokens"], r=3, lora_alpha=5)
    config = LoRAConfig(targets=("tokens",), rank=3, alpha=5.0)
    [(place, peer)] = ours_and_theirs(model, config, peft_config, ("embeddings.tokens",))
    part = place.adapters["adapter"]
    assert part.A.weight.eq(0).all() and peer.lora_embedding_A.default.eq(0).all()
    with torch.no_grad():
        part.A.weight.normal_()
        peer.lora_embedding_A.default.copy_(part.A.weight.T)
        peer.lora_embedding_B.default.copy_(part.B.weight)
    tokens = torch.arange(19).reshape(1, 19)
    torch.testing.assert_close(place(tokens), peer(tokens), rtol=1e-5, atol=1e-5)


def test_ia3(stand_in):
    model = stand_in("encoder-pre", num_layers=1)
    peft_config = PeftIA3Config(target_modules=["v", "down"], feedforward_modules=["down"])
    targets = ("blocks.0.attention.v", "blocks.0.mlp.down")
    for place, peer in ours_and_theirs(model, IA3Config(targets=("v",)), peft_config, targets):
        give([place.adapters["adapter"].gain], [peer.ia3_l.default])
        assert_same(place, peer, torch.randn(2, 5, place.base.in_features))
        peer.merge()
        place.merge()
        torch.testing.assert_close(place.base.weight, peer.base_layer.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(place.base.bias, peer.base_layer.bias, rtol=1e-6, atol=1e-6)


STEPS = 20


@pytest.fixture
def adalora_pair(stand_in):
    """Our model and PEFT's, their triplets in pairs."""
    model = stand_in("encoder-pre", num_layers=1)
    theirs = get_peft_model(
        Theirs(model.backbone),
        AdaLoraConfig(
            target_modules=["down", "q"],
            init_r=3,
            target_r=2,
            lora_alpha=5,
            total_step=STEPS,
            tinit=2,
            tfinal=6,
            deltaT=2,
        ),
    )
    config = AdaLoRAConfig(
        targets=("q", "down"),
        rank=3,
        target_rank=2,
        alpha=5.0,
        initial_fraction=2 / STEPS,
        final_fraction=6 / STEPS,
        prune_every=2,
        orthogonality=0.5,
    )
    attach(model, config)
    pairs = [
        (part, getattr(theirs.base_model.model, path.rpartition(".")[2]))
        for path, part in zip(LINEAR, updates(model, "adapter"), strict=True)
    ]
    for part, peer in pairs:
        factors = [peer.lora_A.default, peer.lora_E.default, peer.lora_B.default]
        give(part.factors().values(), factors)
    return model, theirs, pairs


def test_adalora_forward_and_penalty(adalora_pair):
    """PEFT divides alpha by r + 1e-5, which is within the tolerance."""
    model, theirs, pairs = adalora_pair
    for place, (_, peer) in zip(places(model).values(), pairs, strict=True):
        assert_same(place, peer, torch.randn(2, 5, place.base.in_features))

    class Output:
        loss = torch.zeros(())

    theirs.base_model.model.forward = lambda x: Output
    torch.testing.assert_close(orthogonality(model, "adapter"), theirs.base_model(None).loss, rtol=1e-5, atol=1e-5)


def test_adalora_prunes_what_peft_prunes(adalora_pair):
    """Budget, running means and pruned triplets after each of 20 steps on the same random gradients."""
    model, theirs, pairs = adalora_pair
    ours, peers = RankAllocator(model, "adapter", steps=STEPS), theirs.base_model.rankallocator
    zeros = []
    for step in range(1, STEPS + 1):
        for part, peer in pairs:
            factors = (peer.lora_A.default, peer.lora_E.default, peer.lora_B.default)
            for mine, other in zip(part.factors().values(), factors, strict=True):
                mine.grad = torch.randn(mine.shape)
                other.grad = mine.grad.clone()
        if step < STEPS - 6:  # theirs renews its scores up to the step before t_f, ours up to t_f
            ours.observe(step)
        budget, _ = peers.update_and_allocate(theirs.base_model, step)
        ours.prune(step)
        assert ours.budget(step) == budget
        for part, peer in pairs:
            assert torch.equal(part.E, peer.lora_E.default)
        zeros.append(int(sum(part.E.eq(0).sum() for part, _ in pairs)))
        with torch.no_grad():  # a step of training: what was pruned may grow back
            for part, peer in pairs:
                for mine, other in zip(part.factors().values(), factors_of(peer), strict=True):
                    mine.add_(0.1 * mine.grad)
                    other.copy_(mine)
    assert zeros[0] == 0 and zeros[-1] == 2 and len(set(zeros)) > 2


def factors_of(peer):
    return peer.lora_A.default, peer.lora_E.default, peer.lora_B.default
