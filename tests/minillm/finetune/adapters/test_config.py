"""The section [adapter]: kinds, defaults, and one line for what does not go together."""

from dataclasses import dataclass

import pytest

from minillm.config import build, fields_of, to_table
from minillm.errors import InputError
from minillm.finetune.adapters.config import AdaLoRAConfig, AdapterConfig, IA3Config, LoRAConfig


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A configuration with an adapter, or without one."""

    adapter: AdapterConfig | None = None


def test_a_table_gives_the_configuration_of_its_kind(config):
    assert build(Whole, to_table(Whole(adapter=config))) == Whole(adapter=config)


def test_the_defaults_are_those_of_the_kind():
    assert build(Whole, {}).adapter is None
    assert build(Whole, {"adapter": {"kind": "none"}}).adapter is None
    lora = build(Whole, {"adapter": {"kind": "lora", "rank": 4, "targets": ["q", "k"]}}).adapter
    assert lora == LoRAConfig(rank=4, targets=("q", "k")) and lora.alpha == 16.0
    assert build(Whole, {"adapter": {"kind": "adalora"}}).adapter.targets == ("all",)


def test_every_setting_has_a_meaning_and_the_kinds_that_take_it():
    meanings = {name: field.metadata["meaning"] for name, field, _ in fields_of(Whole)}
    assert meanings["adapter.rank"].startswith("lora, adalora: rank of the update, r")
    assert meanings["adapter.width"].startswith("houlsby, pfeiffer: ")
    assert all(len(meaning) > 10 for meaning in meanings.values())


@pytest.mark.parametrize(
    "table, message",
    [
        ({"kind": "lora", "rank": 0}, "adapter.rank must be at least 1, got 0"),
        ({"kind": "lora", "alpha": 0}, "adapter.alpha must be above 0, got 0"),
        ({"kind": "lora", "alpha": float("nan")}, "adapter.alpha must be above 0, got nan"),
        ({"kind": "lora", "dropout": 1.0}, r"adapter.dropout must be in \[0, 1\), got 1.0"),
        ({"kind": "lora", "targets": []}, "adapter.targets is empty"),
        ({"kind": "lora", "width": 3}, "unknown key adapter.width"),
        ({"kind": "adalora", "target_rank": 13}, r"adapter.target_rank must be from 1 to adapter.rank \(12\), got 13"),
        ({"kind": "adalora", "final_fraction": 0.95}, "are more than the whole run; lower one"),
        ({"kind": "adalora", "beta1": 1.0}, r"adapter.beta1 must be in \[0, 1\), got 1.0"),
        ({"kind": "adalora", "orthogonality": -1}, "adapter.orthogonality must be 0 or above, got -1"),
        ({"kind": "adalora", "prune_every": 0}, "adapter.prune_every must be at least 1, got 0"),
        ({"kind": "houlsby", "width": 0}, "adapter.width must be at least 1, got 0"),
        ({"kind": "pfeiffer", "width": 0}, "adapter.width must be at least 1, got 0"),
        ({"kind": "prefix", "length": 0}, "adapter.length must be at least 1, got 0"),
        ({"kind": "prefix", "mlp_width": 0}, "adapter.mlp_width must be at least 1, got 0"),
        ({"kind": "ia3", "targets": ["k", "down"]}, "adapter.targets and adapter.input_targets both have down"),
        ({"kind": "ia3", "targets": [], "input_targets": []}, "are empty"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_do_is_one_line(table, message):
    with pytest.raises(InputError, match=message) as caught:
        build(Whole, {"adapter": table})
    assert "\n" not in str(caught.value)


def test_edges_that_do():
    """All rank kept, one kind of target alone."""
    assert AdaLoRAConfig(rank=3, target_rank=3, initial_fraction=1.0, final_fraction=0.0)
    assert IA3Config(targets=()) and IA3Config(input_targets=())
