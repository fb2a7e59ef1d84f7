"""What trains, and how fast: layers, heads, decay towards the bottom, one more layer every few steps."""

import copy

import pytest
import torch

from minillm.checkpoint.native import tensors_of
from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach
from minillm.finetune.adapters.config import HoulsbyConfig, LoRAConfig
from minillm.finetune.config import HeadConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.heads import TextHead
from minillm.finetune.scope import heights, lowest, prepare, rate_scales, set_trained, unfreeze_gradually
from minillm.finetune.scope_config import ScopeConfig, check_together
from minillm.finetune.task_model import TaskModel
from minillm.model.init import initialise
from minillm.model.transformer import build_model
from minillm.training.config import OptimConfig
from minillm.training.optim import make_optimiser

OWN = ("head.", "backbone.pooler.")


def trained(model):
    """Names of what has gradients, without their tensors' last parts: "backbone.blocks.0" and so on."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {".".join(n.split(".")[:3]) if ".blocks." in n else ".".join(n.split(".")[:2]) for n in names}


ALL = {
    "backbone.embeddings",
    "backbone.blocks.0",
    "backbone.blocks.1",
    "backbone.final_norm",
    "head.weight",
    "head.bias",
}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    "top_layers, expected",
    [
        (None, ALL),
        (2, ALL - {"backbone.embeddings"}),
        (1, {"backbone.blocks.1", "backbone.final_norm"} | HEAD),
        (0, HEAD),
    ],
    ids=["everything", "all-layers", "top-layer", "head-alone"],
)
def test_top_layers_and_the_head_train(stand_in, top_layers, expected):
    model = stand_in("decoder-pre")
    prepare(model, ScopeConfig(top_layers=top_layers))
    assert trained(model) == expected


def test_a_pooler_trains_with_the_head_and_a_language_models_head_with_the_embeddings(stand_in):
    """The latter's weights are often the embeddings themselves."""
    model = stand_in("encoder-post", head="transform", head_bias=True, tied_embeddings=False)
    prepare(model, ScopeConfig(top_layers=0))
    assert trained(model) == HEAD | {"backbone.pooler"}
    prepare(model, ScopeConfig(top_layers=2))
    assert "backbone.lm_head" not in trained(model)
    prepare(model, ScopeConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rates_fall_by_electras_formula(stand_in):
    """Embeddings 0, layer i at i + 1, the final norm at L + 1, pooler and head at L + 2; in both decay groups."""
    model = stand_in("decoder-pre", pooler=True)
    prepare(model, ScopeConfig())
    scales = rate_scales(model, ScopeConfig(layer_decay=0.8))
    assert scales.keys() == dict(model.named_parameters()).keys()
    L = 2
    for name, scale in scales.items():
        depth = {"embeddings": 0, "blocks": 0, "final_norm": L + 1, "pooler": L + 2}.get(name.split(".")[1], L + 2)
        depth = int(name.split(".")[2]) + 1 if ".blocks." in name else depth
        assert scale == pytest.approx(0.8 ** (L + 2 - depth), rel=1e-12)
    groups = make_optimiser(model, OptimConfig(learning_rate=1.0, weight_decay=0.3), scales).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["peak_lr"] == scales[names[parameter]]
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_an_adapter_has_the_rate_of_its_place(stand_in):
    """Wherever wrappers stand in the names; only what trains is there."""
    model = stand_in("decoder-pre")
    attach(model, HoulsbyConfig(width=3), name="a")
    attach(model, LoRAConfig(rank=3), name="b")
    scales = rate_scales(model, ScopeConfig(layer_decay=0.5))
    assert scales.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, scale in scales.items():
        assert scale == (1.0 if name.startswith("head.") else 0.5 ** (3 - int(name.split(".")[2])))
    assert heights(model)["backbone.final_norm.adapters.a.weight"] == 3


def test_unfreezing_goes_one_layer_down_every_so_many_steps(stand_in):
    """The head alone first; a scope of some layers is its end."""
    model = stand_in("decoder-pre")
    whole, part = ScopeConfig(unfreeze_every=10), ScopeConfig(unfreeze_every=10, top_layers=1)
    stages = []
    for step in (0, 9, 10, 19, 20, 30, 1000):
        set_trained(model, lowest(whole, 2, step))
        stages.append(trained(model))
    top = HEAD | {"backbone.blocks.1", "backbone.final_norm"}
    assert stages == [HEAD, HEAD, top, top, ALL - {"backbone.embeddings"}, ALL, ALL]
    assert [lowest(part, 2, step) for step in (0, 10, 20, 30)] == [4, 2, 2, 2]
    assert [lowest(ScopeConfig(unfreeze_every=10, top_layers=0), 2, step) for step in (0, 10, 99)] == [4, 4, 4]


def test_frozen_layers_stay_to_the_bit_until_their_step(stand_in, make_trainer):
    """Weight decay and momentum leave them alone too; steps without targets count as steps."""
    model, scope = stand_in("decoder-pre"), ScopeConfig(unfreeze_every=2)
    prepare(model, scope)
    trainer = make_trainer(model, max_steps=9, empty=(1, 4))
    unfreeze_gradually(model, scope, trainer)
    before, moved = {name: p.clone() for name, p in model.named_parameters()}, []
    trainer.after_step.append(
        lambda t: moved.append(
            (t.state.step, {n for n, p in model.named_parameters() if not torch.equal(p, before[n])})
        )
    )
    trainer.fit()
    for step, names in moved:
        low = lowest(scope, 2, step - 1)
        expected = {name for name, height in heights(model).items() if height >= low}
        assert names <= expected and len(names) > 0.8 * len(expected)  # a bias of keys has no gradient


@pytest.mark.parametrize("stop", [3, 4, 5], ids=lambda step: f"at-{step}")
def test_gradual_unfreezing_resumes_to_the_bit(stand_in, make_trainer, stop):
    """Stopped within a stage, at its end, and after a step without targets that begins one."""
    scope = ScopeConfig(unfreeze_every=4, layer_decay=0.7)

    def begin(folder):
        model = stand_in("encoder-post", dropout=0.1)
        prepare(model, scope)
        trainer = make_trainer(
            model,
            folder=folder,
            rate_scales=rate_scales(model, scope),
            empty=(4,),
            max_steps=9,
            checkpoint_every=stop,
            keep_checkpoints=9,
        )
        unfreeze_gradually(model, scope, trainer)
        return trainer

    whole = begin("run")
    whole.fit()
    again = begin("again")
    again.folder = whole.folder
    again.resume(stop)
    again.fit()
    ends = tensors_of(whole.model), tensors_of(again.model)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("kind", ["decoder-pre", "encoder-post"])
def test_fresh_layers_have_the_models_own_initial_weights(stand_in, kind):
    """The top ones, the final norm and the pooler; the truth is a whole model drawn by the table."""
    model = stand_in(kind, num_layers=4, width=64)
    before = copy.deepcopy(model)
    prepare(model, ScopeConfig(reinit_layers=2))
    truth = copy.deepcopy(before.backbone)
    initialise(truth, truth.config)
    new, old, drawn = (dict(m.named_parameters()) for m in (model, before, truth))
    for name, parameter in new.items():
        fresh = name.startswith(("backbone.blocks.2", "backbone.blocks.3", "backbone.final_norm", "backbone.pooler"))
        assert torch.equal(parameter, old[name]) != fresh, name
        if fresh:
            by_table = drawn[name.removeprefix("backbone.")]
            assert parameter.std().item() == pytest.approx(by_table.std().item(), rel=0.1, abs=1e-12), name
            assert parameter.mean().item() == pytest.approx(by_table.mean().item(), abs=2e-3), name
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("reinit_layers", [0, 1])
def test_fresh_layers_have_a_fresh_pooler_also_in_the_head_of_a_task(stand_in, reinit_layers):
    """There it is the pretrained one, which reads what the old layers gave."""
    shape = stand_in("encoder-post", width=64, pooler=False).config
    head = HeadConfig(pooling="pooler")
    config = TaskModelConfig(task=TaskFacts(), text=TextConfig(), backbone=shape, head=head)
    model = TaskModel(config, build_model(shape), TextHead(head, shape, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    before = copy.deepcopy(model.head)
    prepare(model, ScopeConfig(reinit_layers=reinit_layers))
    assert torch.equal(model.head.dense.weight, before.dense.weight)
    new, old = model.head.pooler.dense, before.pooler.dense
    if not reinit_layers:
        assert torch.equal(new.weight, old.weight) and torch.equal(new.bias, old.bias)
        return
    assert new.bias.eq(0).all() and new.weight.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert new.weight.std().item() == pytest.approx(shape.init_std, rel=0.1)


@pytest.mark.parametrize("name", ["top_layers", "reinit_layers"])
def test_more_layers_than_there_are_is_one_line(stand_in, name):
    model = stand_in()
    bits = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"scope.{name} is 3, and the model has 2 layers; take at most 2"):
        prepare(model, ScopeConfig(**{name: 3}))
    assert all(torch.equal(tensor, bits[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"top_layers": -1}, "scope.top_layers must not be negative, got -1"),
        ({"unfreeze_every": -1}, "scope.unfreeze_every must not be negative"),
        ({"layer_decay": 0.0}, r"scope.layer_decay must be in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.1}, r"scope.layer_decay must be in \(0, 1\], got 1.1"),
        ({"reinit_layers": 2, "top_layers": 1}, "the others would stay random"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_scope_that_does_not_do_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScopeConfig(**settings)


def test_an_adapter_leaves_no_room_for_a_scope_that_moves_the_model():
    """Decay of the rate goes with both."""
    check_together(ScopeConfig(layer_decay=0.5), LoRAConfig())
    check_together(ScopeConfig(top_layers=0, unfreeze_every=3), None)
    for settings in ({"top_layers": 0}, {"top_layers": 1}, {"unfreeze_every": 5}, {"reinit_layers": 1}):
        with pytest.raises(ValueError, match=rf"scope.{next(iter(settings))} .* with an adapter \(lora\)"):
            check_together(ScopeConfig(**settings), LoRAConfig())
