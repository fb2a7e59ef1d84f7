"""Several adapters on one model: which act, in which order, and what is refused."""

import copy

import pytest
import torch

from minillm.checkpoint.hf.families import FAMILIES
from minillm.errors import InputError
from minillm.finetune.adapters.attach import (
    active,
    adapter_tensors,
    attach,
    attached,
    detach,
    merge,
    put_adapter_tensors,
    set_active,
    unmerge,
)
from minillm.finetune.adapters.config import (
    AdaLoRAConfig,
    BitFitConfig,
    HoulsbyConfig,
    IA3Config,
    LoRAConfig,
    PfeifferConfig,
    PrefixConfig,
)
from minillm.finetune.adapters.peft import save_peft

TOGETHER = [
    LoRAConfig(rank=2, targets=("k", "down")),
    IA3Config(),
    AdaLoRAConfig(rank=3, target_rank=2),
    BitFitConfig(),
]


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_last_one_attached_acts_and_learns_until_others_are_chosen(stand_in, batch, stir):
    """Each alone gives what it gives on a model of its own."""
    model = stand_in()
    alone = {}
    for name, config in (("a", LoRAConfig(rank=3)), ("b", PfeifferConfig(width=3))):
        single = stand_in()
        torch.manual_seed(7)
        attach(single, config, name=name)
        stir(single.backbone.blocks)
        alone[name] = single(**batch)
        torch.manual_seed(7)
        attach(model, config, name=name)
        stir(model.backbone.blocks)
        assert active(model) == (name,) and torch.equal(model(**batch), alone[name])
        own = {n for n in learning(model) if ".adapters." not in n}
        assert own == {"head.weight", "head.bias", "backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}
        assert {n.split(".adapters.")[1].partition(".")[0] for n in learning(model) - own} == {name}
    for name in ("a", "b"):
        set_active(model, name)
        assert torch.equal(model(**batch), alone[name])
    set_active(model, "a", "b")
    assert active(model) == ("a", "b")
    assert {n.split(".adapters.")[1].partition(".")[0] for n in learning(model) if ".adapters." in n} == {"a", "b"}
    assert all(not torch.equal(model(**batch), y) for y in alone.values())
    assert attached(model) == {"a": LoRAConfig(rank=3), "b": PfeifferConfig(width=3)}
    detach(model, "a")
    assert attached(model) == {"b": PfeifferConfig(width=3)} and active(model) == ("b",)
    assert torch.equal(model(**batch), alone["b"])


def test_two_loras_add_up_to_one_of_both_ranks(stand_in, batch, stir):
    """Their A stacked, their B side by side: the sum of two products is one product."""
    model, truth = stand_in(), stand_in()
    for name in ("a", "b"):
        attach(model, LoRAConfig(rank=2, alpha=2.0), name=name)
    set_active(model, "a", "b")
    stir(model.backbone.blocks)
    attach(truth, LoRAConfig(rank=4, alpha=4.0))
    a, b = adapter_tensors(model, "a"), adapter_tensors(model, "b")
    both = {name: torch.cat((a[name], b[name]), dim=0 if ".A." in name else 1) for name in a}
    put_adapter_tensors(truth, "adapter", both, source="a test")
    torch.testing.assert_close(model(**batch), truth(**batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [("0", "1", "2", "3"), ("3", "2", "1", "0"), ("1", "0")], ids="-".join)
def test_they_act_one_around_the_other_and_merge_in_that_order(stand_in, kind, batch, stir, order):
    """Merged equals unmerged in each order; the orders are not equal."""
    model = stand_in(kind).double()
    model.compute_in(torch.float64)
    for number, config in enumerate(TOGETHER):
        attach(model, config, name=str(number))
        stir(model.backbone.blocks)
    model.double()
    set_active(model, *order)
    y = model(**batch)
    set_active(model, *reversed(order))
    assert (model(**batch) - y).abs().max() > 1e-4
    set_active(model, *order)
    merge(model)
    torch.testing.assert_close(model(**batch), y, rtol=1e-9, atol=1e-9)
    unmerge(model)
    assert torch.equal(model(**batch), y)


def test_of_two_at_one_place_the_one_that_is_named_first_acts_inside(stand_in):
    """A shift inside a gain is scaled by it, and outside of it is not."""
    model = stand_in()
    attach(model, BitFitConfig(), name="shift")
    attach(model, IA3Config(targets=("k",)), name="gain")
    place = model.backbone.blocks[0].attention.k
    shift, gain = place.adapters["shift"].shift, place.adapters["gain"].gain
    with torch.no_grad():
        shift.fill_(2.0)
        gain.fill_(3.0)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    set_active(model, "shift", "gain")
    torch.testing.assert_close(place(x), 3 * (place.base(x) + 2))
    set_active(model, "gain", "shift")
    torch.testing.assert_close(place(x), 3 * place.base(x) + 2)


@pytest.mark.parametrize(
    "first, second, message",
    [
        (LoRAConfig(dora=True), LoRAConfig(), "adapter 'a' must act alone at blocks.0.attention.q, where 'b' acts too"),
        (IA3Config(), LoRAConfig(dora=True), "adapter 'b' must act alone at blocks.0.attention.v, where 'a' acts too"),
        (HoulsbyConfig(), HoulsbyConfig(), "adapter 'a' must act alone at embeddings.norm, where 'b' acts too"),
        (BitFitConfig(), HoulsbyConfig(), "adapter 'b' must act alone at embeddings.norm, where 'a' acts too"),
    ],
    ids=["dora-lora", "ia3-dora", "two-houlsby", "bitfit-houlsby"],
)
def test_two_that_cannot_act_at_one_place_are_not_activated(stand_in, first, second, message):
    model = stand_in()
    attach(model, first, name="a")
    attach(model, second, name="b")
    with pytest.raises(ValueError, match=message):
        set_active(model, "a", "b")
    assert active(model) == ("b",)


def test_adapters_at_different_places_act_together_whatever_their_kind(stand_in, batch, stir):
    model = stand_in("decoder-pre")
    configs = [LoRAConfig(rank=2, dora=True), HoulsbyConfig(width=2), PrefixConfig(length=2), IA3Config(targets=("k",))]
    seen = [model(**batch)]
    for number, config in enumerate(configs):
        attach(model, config, name=str(number))
        stir(model.backbone.blocks)
        set_active(model, *map(str, range(number + 1)))
        seen.append(model(**batch))
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))
    for number in range(4):
        detach(model, str(number))
    assert torch.equal(model(**batch), seen[0])


def test_a_model_without_a_task_is_adapted_alike(stand_in, stir):
    """A bare decoder, for text like its own: the adapter learns, and the logits come through the frozen output."""
    model = stand_in("decoder-pre").backbone
    tokens = torch.arange(12).reshape(2, 6)
    before = model.logits(tokens)
    attach(model, LoRAConfig(rank=2, targets=("q", "embeddings.tokens")))
    assert torch.equal(model.logits(tokens), before)
    assert learning(model) == {name for name, _ in model.named_parameters() if ".adapters." in name}
    stir(model)
    model.logits(tokens).square().sum().backward()
    assert model.output_weight.grad is None and model.embeddings.tokens.base.weight is model.output_weight


def test_a_name_that_is_not_one_is_refused(stand_in):
    model = stand_in()
    for name in ("", "a.b", "ü", "a b", "base", "keys", "train"):
        with pytest.raises(ValueError, match="an adapter's name is made of letters, digits, _ and -"):
            attach(model, LoRAConfig(), name=name)
    attach(model, LoRAConfig(), name="a")
    with pytest.raises(ValueError, match="an adapter named 'a' is attached already"):
        attach(model, BitFitConfig(), name="a")
    with pytest.raises(ValueError, match="adapters go onto a Transformer"):
        attach(torch.nn.Linear(2, 2), LoRAConfig())


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(lambda model: set_active(model, "b"), id="set_active"),
        pytest.param(lambda model: detach(model, "b"), id="detach"),
        pytest.param(lambda model: adapter_tensors(model, "b"), id="adapter_tensors"),
        pytest.param(lambda model: put_adapter_tensors(model, "b", {}, source="somewhere"), id="put_adapter_tensors"),
        pytest.param(
            lambda model: save_peft(model, "nowhere", family=FAMILIES["llama"], purpose="causal_lm", name="b"),
            id="save_peft",
        ),
    ],
)
def test_a_name_that_no_adapter_has_is_refused(stand_in, asked):
    model = stand_in()
    attach(model, LoRAConfig(), name="a")
    with pytest.raises(ValueError, match="no adapter is attached under the name 'b'; there is a"):
        asked(model)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            LoRAConfig(targets=("query",)),
            "adapter.targets has 'query', which the model has no layer of; it has .*down, .*q, ",
        ),
        (AdaLoRAConfig(targets=("tokens",)), "adapter.targets has 'tokens'"),
        (LoRAConfig(targets=("q", "gate")), "adapter.targets has 'gate'"),
        (IA3Config(input_targets=("wo",)), "adapter.input_targets has 'wo'"),
        (IA3Config(targets=("mlp.down",)), "both mean blocks.0.mlp.down"),
    ],
    ids=["no-such-layer", "table", "not-gated", "input", "both"],
)
def test_a_target_that_the_model_has_not_is_an_input_error(stand_in, config, message):
    """One line with those that there are, and the model is as it was."""
    model = stand_in()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        attach(model, config)
    assert "\n" not in str(caught.value) and list(model.state_dict()) == names and len(learning(model)) == len(names)


@pytest.mark.parametrize("settings", [{"norm": "rms_norm", "bias": False}], ids=["llama"])
def test_a_model_without_biases_has_nothing_for_bitfit(stand_in, settings):
    with pytest.raises(InputError, match="this model has no bias to learn"):
        attach(stand_in("llama", **settings), BitFitConfig())


def test_all_means_the_linear_layers_of_the_blocks(stand_in):
    """Not the pooler, which trains as a whole, nor what a language model's head has."""
    model = stand_in("encoder-post", head="transform")
    attach(model, LoRAConfig(targets=("all",)))
    places = {name.partition(".adapter.")[0] for name in adapter_tensors(model, "adapter")}
    inside = ("attention.q", "attention.k", "attention.v", "attention.output", "mlp.up", "mlp.down")
    assert places == {f"blocks.{layer}.{name}" for layer in (0, 1) for name in inside}


def test_while_merged_nothing_else_can_be_done(stand_in, stir):
    model = stand_in()
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(model)
    with pytest.raises(ValueError, match="nothing to unmerge"):
        unmerge(model)
    attach(model, LoRAConfig(), name="a")
    set_active(model)
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(model)
    set_active(model, "a")
    merge(model)
    for attempt in (
        lambda: merge(model),
        lambda: set_active(model),
        lambda: attach(model, BitFitConfig(), name="b"),
        lambda: detach(model, "a"),
    ):
        with pytest.raises(ValueError, match="cannot .* while adapters are merged; unmerge them first"):
            attempt()


def test_merging_one_that_cannot_leaves_the_other_unmerged(stand_in, batch, stir):
    model = stand_in()
    attach(model, LoRAConfig(), name="a")
    attach(model, PrefixConfig(length=2), name="b")
    set_active(model, "a", "b")
    stir(model.backbone.blocks)
    before, bits = model(**batch), copy.deepcopy(model.state_dict())
    with pytest.raises(
        InputError, match=r"adapter 'b' \(prefix\) cannot be merged: no weight at blocks.0.attention.source"
    ):
        merge(model)
    assert torch.equal(model(**batch), before)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_do_not_fit_change_nothing(stand_in, change):
    model = stand_in()
    attach(model, LoRAConfig(rank=3))
    before = {name: tensor.clone() for name, tensor in adapter_tensors(model, "adapter").items()}
    name = "blocks.1.attention.v.adapter.B.weight"
    tensors = {key: torch.randn(tensor.shape) for key, tensor in before.items()}
    message = {
        "missing": rf"{name} \(16, 3\), the file has no such tensor",
        "extra": r"asks for more no such tensor, the file has \(2,\)",
        "shape": rf"{name} \(16, 3\), the file has \(16, 2\)",
    }[change]
    if change == "missing":
        del tensors[name]
    else:
        tensors |= {"more": torch.ones(2)} if change == "extra" else {name: torch.ones(16, 2)}
    with pytest.raises(InputError, match=f"somewhere is of another architecture: the model .*{message}"):
        put_adapter_tensors(model, "adapter", tensors, source="somewhere")
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_tensors(model, "adapter").items())


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(stand_in):
    """No wrapper, nothing frozen, and nobody who listens to the seeds of the passes for its dropout."""
    model = stand_in()
    names = list(model.state_dict())
    with pytest.raises(InputError, match="the file has no such tensor"):
        attach(model, LoRAConfig(dropout=0.5), tensors={"more": torch.ones(2)}, source="somewhere")
    assert list(model.state_dict()) == names and len(learning(model)) == len(names)
    backbone = model.backbone
    assert not any(module._forward_pre_hooks for module in (backbone, *backbone.blocks))
