"""What must hold of each kind of adapter, on encoders and decoders, pre- and post-norm."""

import copy

import pytest
import torch

from minillm.errors import InputError
from minillm.finetune.adapters.attach import adapter_tensors, attach, attached, detach, merge, set_active, unmerge
from minillm.finetune.adapters.config import (
    AdaLoRAConfig,
    BitFitConfig,
    HoulsbyConfig,
    IA3Config,
    LoRAConfig,
    PfeifferConfig,
    PrefixConfig,
)

NEAR = (HoulsbyConfig, PfeifferConfig)  # begin near the model itself: `test_bottleneck.py` has the bound


def gradients(model, batch):
    """The names of the parameters that a loss gives a gradient to."""
    model(**batch).square().sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_start_is_the_model_itself(stand_in, kind, config, any_batch):
    """To the bit; bottlenecks nearly, and a prefix not: its keys take their share of the softmax."""
    model = stand_in(kind)
    before = model(**any_batch)
    attach(model, config)
    after = model(**any_batch)
    if isinstance(config, PrefixConfig):
        assert (after - before).abs().max() > 1e-4
    elif isinstance(config, NEAR):
        torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    else:
        assert torch.equal(after, before)


def test_the_adapter_and_the_tasks_own_weights_learn_and_nothing_else(stand_in, kind, config, batch, stir):
    """The head's and the pooler's among them; everything that may learn has a gradient."""
    model = stand_in(kind)
    own = {name for name, _ in model.named_parameters() if name.startswith(("head.", "backbone.pooler."))}
    frozen = {name: tensor.clone() for name, tensor in model.named_parameters() if name not in own}
    attach(model, config, name="mine")
    stir(model)
    expected = own | {name for name, _ in model.named_parameters() if ".adapters.mine." in name}
    assert gradients(model, batch) == expected
    parts = adapter_tensors(model, "mine")
    assert len(parts) == len(expected - own) and all(p.grad.isfinite().all() for p in parts.values())
    assert any(p.grad.abs().max() > 0 for p in parts.values())
    detach(model)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.named_parameters() if name in frozen)


def test_without_it_the_model_is_what_it_was(stand_in, kind, config, batch, stir):
    """Inactive or detached, to the bit; detached, under the same names."""
    model = stand_in(kind)
    before, names = model(**batch), list(model.state_dict())
    attach(model, config)
    stir(model.backbone)
    moved = model(**batch)
    set_active(model)
    inactive = model(**batch)
    detach(model)
    head_too = model(**batch)
    if model.backbone.pooler is None:  # the pooler learns as well, and `stir` moved it
        assert torch.equal(inactive, before) and torch.equal(head_too, before)
    assert torch.equal(inactive, head_too) and not torch.equal(moved, inactive)
    assert list(model.state_dict()) == names and not model.backbone._forward_pre_hooks


def linear_sizes(model, names):
    C, H, D, Hkv, F = model.width, model.num_heads, model.head_dim, model.kv_heads, model.hidden
    table = {"q": (C, H * D), "k": (C, Hkv * D), "v": (C, Hkv * D), "output": (H * D, C), "up": (C, F), "down": (F, C)}
    table |= {"gate": (C, F)} if model.activation == "swiglu" else {}
    return [table[name] for name in (table if names == ("all",) else names)] * model.num_layers


def trainable(model, config):
    """The numbers that a method trains, by the formulae of its paper for `model`, a ModelConfig."""
    L, C, H = model.num_layers, model.width, model.kv_heads * model.head_dim
    norms = (2 * L + (model.norm_position == "pre")) + model.embedding_norm
    norms -= model.norm_position == "pre" and model.embedding_norm  # the first block then has one norm less
    match config:
        case LoRAConfig(targets=("embeddings.tokens", "q")):
            return config.rank * (model.vocab_size + C + sum(map(sum, linear_sizes(model, ("q",)))))
        case LoRAConfig():
            sizes = linear_sizes(model, config.targets)
            return sum(config.rank * (i + o) + config.dora * o for i, o in sizes)
        case AdaLoRAConfig():
            return sum(config.rank * (i + o + 1) for i, o in linear_sizes(model, config.targets))
        case HoulsbyConfig(width=m):
            return L * 2 * (2 * m * C + m + C) + norms * 2 * C
        case PfeifferConfig(width=m):
            return L * (2 * m * C + m + C)
        case PrefixConfig(length=P, mlp_width=None):
            return L * 2 * P * H
        case PrefixConfig(length=P, mlp_width=h):
            return P * C + (C + 1) * h + (h + 1) * L * 2 * H
        case IA3Config():
            return L * (2 * H + model.hidden)
        case BitFitConfig():
            return sum(o for _, o in linear_sizes(model, ("all",))) + norms * C


def test_trainable_counts_equal_the_formulae(stand_in, kind, config):
    norm = "layer_norm"  # two vectors a norm, which the formulae count
    model = stand_in(kind, norm=norm, qk_norm=False)
    attach(model, config)
    own = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("head.", "backbone.pooler.")))
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learning - own == trainable(model.config, config)
    assert learning - own == sum(p.numel() for p in adapter_tensors(model, "adapter").values())


def test_merged_is_as_close_to_the_truth_as_unmerged(stand_in, kind, mergeable, batch, stir):
    """The truth is the unmerged model in float64; then unmerging restores the very bits."""
    model = stand_in(kind, tied_embeddings=False)
    attach(model, mergeable)
    stir(model)
    exact = copy.deepcopy(model).double()
    exact.compute_in(torch.float64)
    truth, plain = exact(**batch), model(**batch)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model)
    merged = model(**batch)
    allowed = 2 * (plain - truth).abs().max() + 16 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (merged - truth).abs().max() <= allowed
    assert any(not torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    unmerge(model)
    assert model.state_dict().keys() == bits.keys()
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(**batch), plain)


def test_what_no_weight_can_take_in_is_not_merged(stand_in, kind, unmergeable, stir):
    """Networks, prefixes, and a table that is the output weight too: one line, and nothing changes."""
    model = stand_in(kind)
    attach(model, unmergeable)
    stir(model)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="adapter 'adapter'.* cannot be merged: .*keep it attached") as caught:
        merge(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())


def test_a_merged_model_without_its_adapter_is_a_plain_one(stand_in, kind, batch, stir):
    """How an adapter is shipped to those who know none."""
    model = stand_in(kind)
    names = list(model.state_dict())
    attach(model, LoRAConfig(rank=3, targets=("all",)))
    stir(model)
    merge(model)
    merged = model(**batch)
    detach(model)
    assert list(model.state_dict()) == names and not attached(model)
    assert torch.equal(model(**batch), merged)


def test_weights_stay_float32_where_the_activations_are_bfloat16(stand_in, kind, config, batch, stir):
    """What comes out is bfloat16 and no further from float32 than a few times what rounding all weights takes it.

    Updates as large as these make some models ill-conditioned; with any of twelve seeds the largest share is 5.5.
    """
    model = stand_in(kind)
    attach(model, config)
    stir(model.backbone)
    wide = model(**batch)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    model.compute_in(torch.bfloat16)
    narrow = model(**batch)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - wide).norm() <= 8 * (rounded(**batch) - wide).norm() + 0.01 * wide.norm()
    narrow.float().square().sum().backward()
    for parameter in adapter_tensors(model, "adapter").values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def assert_compiles(model, batch, backend):
    """One graph, whose output and gradients are those of eager mode."""
    torch._dynamo.reset()
    graph = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    eager, compiled = model(**batch), graph(**batch)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    eager.square().sum().backward()
    compiled.square().sum().backward()
    for ours, theirs in zip(model.parameters(), graph.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-4)


def test_an_adapted_model_compiles_as_one_graph(stand_in, one_of_each, batch, stir):
    model = stand_in("encoder-pre", num_layers=1)
    attach(model, one_of_each)
    stir(model)
    assert_compiles(model, batch, "eager")  # whether it is one graph is settled before a backend sees it


def test_dropout_in_an_adapter_compiles(stand_in, batch, stir):
    """The seed of the pass reaches the adapter inside the graph too; without one it is drawn."""
    model = stand_in("encoder-pre", num_layers=1)
    attach(model, LoRAConfig(rank=3, targets=("q",), dropout=0.5))
    stir(model)
    model.train()
    assert_compiles(model, batch | {"seed": 5}, "aot_eager")
    assert not torch.equal(model(**batch), model(**batch))
