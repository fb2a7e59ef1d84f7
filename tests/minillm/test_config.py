"""TOML and command-line words become frozen dataclasses, and mistakes become one helpful line."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import pytest

from minillm.config import REQUIRED, build, convert, fields_of, override, read_toml, setting, to_table, toml_text
from minillm.data.config import DataConfig
from minillm.errors import InputError
from minillm.finetune.adapters.config import AdaLoRAConfig, LoRAConfig
from minillm.finetune.augmentation import AugmentationConfig
from minillm.finetune.config import BackboneConfig, FinetuneOptimConfig, FinetuneTrainConfig, HeadConfig, TaskConfig
from minillm.finetune.regularisers.config import RegulariserConfig
from minillm.finetune.scope_config import ScopeConfig
from minillm.model.config import ModelConfig
from minillm.objectives.config import ObjectiveConfig
from minillm.sampling import SamplingConfig
from minillm.tokenizer.config import TokenizerConfig
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.distributed_config import DistributedConfig


@dataclass(frozen=True, kw_only=True)
class Oven:
    """A section."""

    degrees: int = setting(REQUIRED, "temperature in degrees")
    mode: Literal["fan", "grill"] = setting("fan", "how it heats")
    minutes: float | None = setting(None, "time; none: until told")
    trays: tuple[int, ...] = setting((), "which trays")
    light: bool = setting(False, "the lamp")
    timer: float | None = setting(5.0, "minutes to the bell; none: no bell")

    def __post_init__(self):
        if self.degrees > 300:
            raise ValueError(f"oven.degrees must be at most 300, got {self.degrees}")


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    """A configuration of sections."""

    oven: Oven = field(metadata={"meaning": "the oven"})


@dataclass(frozen=True, kw_only=True)
class Gas:
    """A kind of stove."""

    kind: Literal["gas"] = setting("gas", "the kind")
    burners: int = setting(4, "number of flames")
    jets: int = setting(REQUIRED, "holes in a burner")


@dataclass(frozen=True, kw_only=True)
class Induction:
    """Another kind of stove."""

    kind: Literal["induction"] = setting("induction", "the kind")
    burners: int = setting(3, "number of coils")


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A configuration with a section that comes in kinds, or not at all."""

    stove: Gas | Induction | None = None


def test_file_and_table_round_trip(tmp_path):
    """What was written is what is read, also None in the place of a default."""
    kitchen = Kitchen(oven=Oven(degrees=200, mode="grill", minutes=1.5, trays=(1, 2), light=True, timer=None))
    (tmp_path / "kitchen.toml").write_text(toml_text(kitchen), encoding="utf-8")
    assert build(Kitchen, read_toml(tmp_path / "kitchen.toml")) == kitchen
    assert build(Kitchen, to_table(kitchen)) == kitchen


@pytest.mark.parametrize(
    "table, message",
    [
        pytest.param({"oven": {"degres": 1}}, "unknown key oven.degres.*did you mean oven.degrees", id="misspelt-key"),
        pytest.param({"degrees": 1}, "unknown key degrees.*did you mean oven.degrees", id="wrong-section"),
        pytest.param({"ovn": {}}, "unknown key ovn.*did you mean oven", id="misspelt-section"),
        pytest.param({"oven": 3}, "oven is a section", id="value-for-section"),
        pytest.param({}, "oven.degrees is missing.*temperature in degrees", id="missing"),
        pytest.param({"oven": {"degrees": "hot"}}, "oven.degrees takes int, got 'hot'", id="type"),
        pytest.param({"oven": {"degrees": 1.5}}, "oven.degrees takes int", id="fraction-for-int"),
        pytest.param({"oven": {"degrees": True}}, "oven.degrees takes int", id="bool-for-int"),
        pytest.param({"oven": {"degrees": 2**63}}, r"oven.degrees must be below 2\*\*63 in size", id="int-of-64-bits"),
        pytest.param({"oven": {"degrees": str(-(2**63))}}, "below 2.*63 in size, got -92233", id="negative-of-64-bits"),
        pytest.param({"oven": {"degrees": 1, "mode": "fann"}}, "one of fan, grill, got 'fann'", id="choice"),
        pytest.param({"oven": {"degrees": 1, "light": "yes"}}, "oven.light takes bool", id="bool"),
        pytest.param({"oven": {"degrees": 301}}, "at most 300, got 301", id="cross-check"),
        pytest.param({"oven": {"degrees": 1, "minutes": "inf inf"}}, "takes float or none", id="optional"),
    ],
)
def test_a_mistake_is_one_line_that_helps(table, message):
    """Every kind of mistake names the key, what it takes and what came."""
    with pytest.raises(InputError, match=message) as caught:
        build(Kitchen, table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, word, value",
    [
        pytest.param(int, "1_000", 1000, id="underscore"),
        pytest.param(float, "1e-3", 1e-3, id="float"),
        pytest.param(bool, "true", True, id="bool"),
        pytest.param(int | None, "none", None, id="none"),
        pytest.param(int | None, "3", 3, id="optional"),
        pytest.param(tuple[float, ...], "0.9,0.95", (0.9, 0.95), id="list"),
        pytest.param(str, "none", "none", id="text"),
    ],
)
def test_words_of_the_command_line(kind, word, value):
    """A word becomes the type of its field."""
    assert convert("x", kind, word) == value


def test_override_reaches_into_sections():
    """--oven.degrees 5 sets one value and leaves its neighbours."""
    table = {"oven": {"degrees": 1, "light": True}}
    override(table, "oven.degrees", "5")
    assert build(Kitchen, table).oven == Oven(degrees=5, light=True)


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(None, "no configuration file", id="missing"),
        pytest.param(b"a = ", "is not a TOML file", id="syntax"),
        pytest.param(b"\xff\xfe\x00", "is not a TOML file", id="binary"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, content, message):
    """A missing or broken file is an input error, not a traceback."""
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_toml(path)


@pytest.mark.parametrize(
    "table, stove",
    [
        pytest.param({}, None, id="absent"),
        pytest.param({"stove": {"kind": "none", "burners": 2}}, None, id="none"),
        pytest.param({"stove": {"kind": "gas", "jets": 9}}, Gas(burners=4, jets=9), id="defaults-of-the-kind"),
        pytest.param({"stove": {"kind": "induction", "burners": 2}}, Induction(burners=2), id="the-other-kind"),
    ],
)
def test_a_section_may_come_in_kinds(table, stove):
    """The kind chooses the dataclass, and the table of what was built builds the same."""
    flat = build(Flat, table)
    assert flat == Flat(stove=stove)
    assert build(Flat, to_table(flat)) == flat


@pytest.mark.parametrize(
    "table, message",
    [
        pytest.param(
            {"stove": {"kind": "coal"}}, "stove.kind takes one of gas, induction, none, got 'coal'", id="kind"
        ),
        pytest.param({"stove": {"burners": 1}}, "stove.kind is missing in .*one of gas, induction, none", id="no-kind"),
        pytest.param({"stove": {"kind": "induction", "jets": 1}}, "unknown key stove.jets", id="of-another-kind"),
        pytest.param({"stove": {"kind": "gas"}}, "stove.jets is missing", id="required-by-the-kind"),
        pytest.param({"stove": "gas"}, "stove is a section", id="value-for-section"),
        pytest.param({"stov": {"kind": "gas"}}, "unknown key stov.*did you mean stove", id="misspelt-section"),
    ],
)
def test_a_mistake_in_a_section_of_kinds_is_one_line(table, message):
    """Whatever is wrong is named with its dotted name."""
    with pytest.raises(InputError, match=message):
        build(Flat, table)


def test_settings_of_all_kinds_are_listed_once():
    """The command line offers each name once and says which kinds take it; defaults that differ are not shown."""
    listed = {name: (f.metadata["meaning"], f.default, hint) for name, f, hint in fields_of(Flat)}
    assert listed == {
        "stove.kind": ("which of the kinds this section is", "none", Literal["gas", "induction", "none"]),
        "stove.burners": ("gas, induction: number of flames; or number of coils", REQUIRED, int),
        "stove.jets": ("gas: holes in a burner", REQUIRED, int),
    }


def test_every_model_setting_has_a_meaning():
    """--help prints a meaning beside each setting."""
    for name, member, _ in fields_of(ModelConfig):
        assert len(member.metadata["meaning"]) > 10, name


@pytest.mark.parametrize(
    "values, message",
    [
        pytest.param(
            {"width": 256, "num_heads": 6}, r"num_heads \(6\) must divide model.width \(256\); try 4", id="heads"
        ),
        pytest.param({"num_heads": 12, "num_kv_heads": 5}, "num_kv_heads", id="kv-heads"),
        pytest.param({"width": 9, "num_heads": 3, "position": "rotary"}, "even head width", id="odd-rotary"),
        pytest.param({"dropout": 1.0}, "dropout must be in", id="dropout"),
        pytest.param({"num_layers": 0}, "num_layers must be at least 1", id="no-layers"),
        pytest.param({"head": "none", "head_bias": True}, "head_bias needs a head", id="bias-without-head"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(values, message):
    """Cross-checks of the model section name the setting and a way out."""
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=100, **values)


SECTIONS = (ModelConfig, TokenizerConfig, DataConfig, ObjectiveConfig, TrainConfig, OptimConfig, DistributedConfig)
SECTIONS += (TaskConfig, BackboneConfig, HeadConfig, ScopeConfig, LoRAConfig, AdaLoRAConfig, RegulariserConfig)
SECTIONS += (AugmentationConfig, FinetuneTrainConfig, FinetuneOptimConfig, SamplingConfig)
NUMBERS = [
    pytest.param(section, name, value, id=f"{section.__name__}.{name}-{value}")
    for section in SECTIONS
    for name, _, kind in fields_of(section)
    if float in (kind, *get_args(kind))
    for value in ("nan", "inf", "-inf")
    if (name, value.lstrip("-")) != ("no_answer_threshold", "inf")  # never, or always, without an answer
]


@pytest.mark.parametrize("section, name, value", NUMBERS)
def test_no_setting_takes_what_is_no_finite_number(section, name, value):
    """A comparison with nan is false: a check that asks for what is wrong, and not for what is right, lets it pass."""
    with pytest.raises(InputError, match=name):
        build(section, {name: value})


@pytest.mark.parametrize("name", ["epochs", "evals_per_epoch"])
def test_numbers_of_steps_stay_numbers(name):
    """The largest that is taken gives whole numbers of steps; a larger one is refused where it stands."""
    assert FinetuneTrainConfig(**{name: 1e9}).resolved(100, "loss").max_steps >= 13
    with pytest.raises(InputError, match=f"train.{name} must be above 0 and at most 1e.09, got 1e.308"):
        build(FinetuneTrainConfig, {name: 1e308}, prefix="train.")
