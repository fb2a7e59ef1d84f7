"""Bottlenecks begin as nearly the identity, by the bound that is stated; Houlsby's brings its own norms."""

import pytest
import torch
from torch.nn import functional as F

from minillm.finetune.adapters.attach import adapter_tensors, attach, set_active
from minillm.finetune.adapters.bottleneck import Bottleneck
from minillm.finetune.adapters.config import HoulsbyConfig, PfeifferConfig

KINDS = [pytest.param(HoulsbyConfig, F.gelu, id="houlsby"), pytest.param(PfeifferConfig, F.relu, id="pfeiffer")]


@pytest.mark.parametrize("config, activation", KINDS)
@pytest.mark.parametrize("width, hidden", [(64, 16), (7, 3), (1, 1)], ids=["aligned", "ragged", "one"])
def test_the_start_is_within_the_stated_bound_of_the_identity(config, activation, width, hidden):
    """|y - u| <= 4e-6 m |u|_1 in every element, up to the rounding of u itself."""
    torch.manual_seed(0)
    part = Bottleneck(width, config(width=hidden)).double()
    u = torch.randn(50, width, dtype=torch.float64)
    y = part(lambda x: x, u)
    assert ((y - u).abs() <= 4e-6 * hidden * u.abs().sum(dim=-1, keepdim=True)).all()
    for layer in (part.down, part.up):
        assert layer.weight.abs().max() <= 2e-3 and layer.weight.abs().max() > 0 and layer.bias.eq(0).all()
    if width == 64:  # the standard deviation of a normal that is cut at two of its own: 0.88
        assert part.down.weight.std().item() == pytest.approx(0.88e-3, rel=0.05)


@pytest.mark.parametrize("config, activation", KINDS)
def test_it_computes_its_formula(config, activation):
    part = Bottleneck(6, config(width=4))
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    u = torch.randn(2, 3, 6)
    truth = u + F.linear(activation(F.linear(u, part.down.weight, part.down.bias)), part.up.weight, part.up.bias)
    torch.testing.assert_close(part(lambda x, now: x, u, None), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config, sublayers",
    [(HoulsbyConfig(width=3), {"attention", "mlp"}), (PfeifferConfig(width=3), {"mlp"})],
    ids=["houlsby", "pfeiffer"],
)
def test_the_sub_layers_that_have_a_bottleneck(stand_in, config, sublayers):
    """Houlsby's stand after both, Pfeiffer's after the feed-forward part alone, in every block."""
    model = stand_in("encoder-post")
    attach(model, config)
    found = {name.partition(".adapter.")[0] for name in adapter_tensors(model, "adapter") if ".down." in name}
    assert found == {f"blocks.{layer}.{sublayer}" for layer in (0, 1) for sublayer in sublayers}


def test_houlsbys_norms_are_copies_that_the_model_is_spared(stand_in, stir, batch):
    """All five of a pre-norm encoder with a normed embedding; the model's own keep their bits."""
    model = stand_in("encoder-pre")
    before = model(**batch)
    own = {n: p.clone() for n, p in model.backbone.named_parameters()}
    attach(model, HoulsbyConfig(width=3))
    norms = {name for name in adapter_tensors(model, "adapter") if "norm" in name}
    assert norms == {
        f"{path}.adapter.{tensor}"
        for path in (
            "embeddings.norm",
            "blocks.0.mlp_norm",
            "blocks.1.attention_norm",
            "blocks.1.mlp_norm",
            "final_norm",
        )
        for tensor in ("weight", "bias")
    }
    stir(model.backbone)
    after = model(**batch)
    set_active(model)
    assert torch.equal(model(**batch), before) and not torch.equal(after, before)
    now = dict(model.backbone.named_parameters())
    assert all(torch.equal(now[n if n in now else with_base(n)], p) for n, p in own.items())


def with_base(name: str) -> str:
    """The name of a norm's tensor, or of a sub-layer's, once it is adapted."""
    head, _, tail = name.rpartition(".")
    if "norm" in name.rpartition(".")[0]:
        return f"{head}.base.{tail}"
    for sublayer in ("attention", "mlp"):
        name = name.replace(f".{sublayer}.", f".{sublayer}.base.")
    return name


@pytest.mark.parametrize("kind", ["encoder-post", "decoder-pre"])
def test_an_own_norm_is_the_norm_with_its_weights(stand_in, kind, batch):
    """The truth is the bare model with the same gains and biases in its norms, bottlenecks left at zero."""
    model, truth = stand_in(kind), stand_in(kind)
    attach(model, HoulsbyConfig(width=3))
    tensors, own = adapter_tensors(model, "adapter"), dict(truth.backbone.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if "norm.adapter." in name:
                tensor.normal_()
                own[name.replace(".adapter.", ".")].copy_(tensor)
            elif name.endswith("up.weight"):
                tensor.zero_()
    torch.testing.assert_close(model(**batch), truth(**batch), rtol=1e-6, atol=1e-6)
