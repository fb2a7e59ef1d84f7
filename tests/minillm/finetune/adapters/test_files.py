"""What is saved comes back, the head with it; what does not fit is named, and nothing changes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm.config import to_table
from minillm.errors import InputError
from minillm.finetune.adapters.attach import adapter_tensors, attach, attached, merge
from minillm.finetune.adapters.config import LoRAConfig
from minillm.finetune.adapters.files import load, save


def fresh(stand_in, kind, **settings):
    """The same pretrained backbone with another head."""
    model = stand_in(kind, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("head.", "backbone.pooler.")):
                parameter.normal_()
    return model


def test_a_loaded_adapter_gives_the_same_outputs(stand_in, kind, config, batch, stir, tmp_path):
    """To the bit, on a model whose head, and pooler if it has one, was another; the random state stays."""
    model = stand_in(kind)
    attach(model, config, name="mine")
    stir(model)
    save(model, tmp_path / "deep" / "folder", name="mine")
    other = fresh(stand_in, kind)
    state = torch.get_rng_state()
    assert load(other, tmp_path / "deep" / "folder") == "mine"
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(other(**batch), model(**batch)) and attached(other) == {"mine": config}
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in other.named_parameters() if parameter.requires_grad} == names


def test_the_folder_has_the_adapter_the_head_and_nothing_of_the_model(stand_in, tmp_path):
    model = stand_in("encoder-post")
    attach(model, LoRAConfig(rank=3, targets=("q",)))
    save(model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter.json", "adapter.safetensors"}
    assert set(load_file(tmp_path / "adapter" / "adapter.safetensors")) == {
        *(f"blocks.{layer}.attention.q.adapter.{letter}.weight" for layer in (0, 1) for letter in "AB"),
        *(f"task.{name}.{tensor}" for name in ("head", "backbone.pooler.dense") for tensor in ("weight", "bias")),
    }
    card = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert (card["format"], card["name"]) == ("minillm-adapter-1", "adapter") and card["model"]["width"] == 16
    assert card["adapter"] == to_table(LoRAConfig(rank=3, targets=("q",)))


def test_a_second_one_is_loaded_beside_the_first(stand_in, batch, stir, tmp_path):
    """Under another name, and with the head that is there left alone."""
    model = stand_in()
    attach(model, LoRAConfig(rank=3))
    stir(model)
    save(model, tmp_path / "first")
    expected, head = model(**batch), model.head.weight.clone()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    load(model, tmp_path / "first", name="again", task=False)
    assert torch.equal(model.head.weight, head + 1.0) and set(attached(model)) == {"adapter", "again"}
    load(model, tmp_path / "first", name="third")
    assert torch.equal(model(**batch), expected)


def test_a_merged_adapter_is_saved_as_what_it_is(stand_in, batch, stir, tmp_path):
    model = stand_in()
    attach(model, LoRAConfig(rank=3))
    stir(model)
    expected = model(**batch)
    merge(model)
    save(model, tmp_path / "adapter")
    other = fresh(stand_in, "encoder-post")
    load(other, tmp_path / "adapter")
    assert torch.equal(other(**batch), expected)


def test_saving_again_replaces_an_adapter_and_nothing_else(stand_in, tmp_path):
    model = stand_in()
    attach(model, LoRAConfig(rank=3))
    save(model, tmp_path / "adapter")
    save(model, tmp_path / "adapter")
    (tmp_path / "adapter/to-keep.txt").write_text("dear")
    with pytest.raises(InputError, match="has to-keep.txt beside an adapter, and would be replaced"):
        save(model, tmp_path / "adapter")
    assert (tmp_path / "adapter/to-keep.txt").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-keep.txt").write_text("dear")
    with pytest.raises(InputError, match="letters is not a folder with an adapter, and would be replaced"):
        save(model, tmp_path / "letters")
    assert (tmp_path / "letters" / "to-keep.txt").read_text() == "dear"


def edited(folder, **changes):
    """Change adapter.json."""
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def changed(folder, change):
    """Change adapter.safetensors."""
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


A = "blocks.1.attention.v.adapter.A.weight"
BIAS = "task.head.bias"
DAMAGE = {
    "no-card": (lambda f: (f / "adapter.json").unlink(), "not a folder with an adapter: it has no adapter.json"),
    "no-tensors": (lambda f: (f / "adapter.safetensors").unlink(), "adapter.safetensors is missing"),
    "cut-off": (lambda f: (f / "adapter.safetensors").write_bytes(b"\x01" * 20), "cannot read .*adapter.safetensors"),
    "not-json": (lambda f: (f / "adapter.json").write_text("{"), "adapter.json is damaged"),
    "format": (
        lambda f: edited(f, format="other-2"),
        "of the format 'other-2', and this version reads minillm-adapter",
    ),
    "kind": (lambda f: edited(f, adapter={"kind": "laura"}), "adapter.kind takes one of lora, .*, got 'laura'"),
    "setting": (lambda f: edited(f, adapter={"kind": "lora", "rnk": 2}), "unknown key adapter.rnk .*adapter.rank"),
    "other-rank": (
        lambda f: edited(f, adapter={"kind": "lora", "rank": 2}),
        r"A.weight \(2, 16\), the file has \(3, 16",
    ),
    "missing": (lambda f: changed(f, lambda t: t.pop(A)), rf"{A} \(3, 16\), the file has no such tensor"),
    "extra": (lambda f: changed(f, lambda t: t.update(more=torch.ones(2))), "asks for more no such tensor"),
    "no-head": (lambda f: changed(f, lambda t: t.pop(BIAS)), r"head.bias \(3,\), the file has no such tensor"),
    "head": (lambda f: changed(f, lambda t: t.update({BIAS: torch.ones(4)})), r"head.bias \(3,\), the file has \(4,\)"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_fit_is_one_line_and_changes_nothing(stand_in, tmp_path, damage, message):
    model = stand_in()
    attach(model, LoRAConfig(rank=3))
    save(model, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    other = fresh(stand_in, "encoder-post")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load(other, tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    assert other.state_dict().keys() == before.keys() and all(p.requires_grad for p in other.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "setting, came, asked",
    [("num_heads", 4, 2), ("activation", "gelu", "relu2"), ("position", "learned", "alibi"), ("norm_eps", 1e-5, 0.1)],
)
def test_another_architecture_of_the_same_shapes_is_refused(stand_in, tmp_path, setting, came, asked):
    """Another number of heads has the same tensors; another dropout is no other model."""
    model = stand_in(**{setting: came})
    attach(model, LoRAConfig(rank=3))
    save(model, tmp_path / "adapter")
    with pytest.raises(InputError, match=f"model.{setting} is {came} in it, this model has {asked}"):
        load(stand_in("encoder-post", **{setting: asked}), tmp_path / "adapter")
    load(stand_in("encoder-post", dropout=0.3, **{setting: came}), tmp_path / "adapter")
    assert adapter_tensors(model, "adapter")
