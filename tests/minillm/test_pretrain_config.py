"""All settings of a run: sections that fit each other, presets by name, rehearsals."""

import pytest

from minillm.config import build
from minillm.errors import InputError
from minillm.pretrain_config import (
    QUICK_STEPS,
    PretrainConfig,
    preset_names,
    preset_table,
    rehearsal,
)


def test_every_preset_is_a_configuration():
    """Names are those of the files; each builds, with the objective of its kind."""
    assert {"tiny-decoder", "tiny-encoder", "gpt2-124m", "bert-base", "llama-125m", "modernbert-base"} <= set(
        preset_names()
    )
    for name in preset_names():
        config = build(PretrainConfig, preset_table(name), source=name)
        assert (config.model.kind == "encoder") == (config.objective.name == "masked_lm"), name


def test_an_unknown_preset_brings_the_nearest():
    """A slip of the pen is answered with the right name."""
    with pytest.raises(InputError, match="did you mean tiny-encoder"):
        preset_table("tiny-encodr")


@pytest.mark.parametrize(
    "section, settings, hint",
    [
        ("objective", {"name": "masked_lm"}, "a decoder learns by causal_lm"),
        ("model", {"kind": "encoder"}, "an? encoder learns by masked_lm"),
        ("model", {"head": "none"}, "pretraining needs one"),
    ],
)
def test_sections_that_do_not_fit(section, settings, hint):
    """Both sides are named, and what to do."""
    table = preset_table("tiny-decoder")
    table[section] |= settings
    with pytest.raises(InputError, match=hint):
        build(PretrainConfig, table, source="a test")


@pytest.mark.parametrize(
    "quick, done, steps, expected",
    [
        ("1", 0, 1000, QUICK_STEPS),
        ("1", 40, 1000, 40 + QUICK_STEPS),
        ("1", 0, 7, 7),
        ("0", 0, 1000, 1000),
        ("", 0, 50, 50),
    ],
)
def test_rehearsal(monkeypatch, quick, done, steps, expected):
    """QUICK=1 cuts what a run still has before it, says so in one line, and changes nothing else."""
    monkeypatch.setenv("QUICK", quick)
    table = preset_table("tiny-decoder")
    table["train"]["max_steps"] = steps
    config, said = build(PretrainConfig, table, source="a test"), []
    cut = rehearsal(config, said.append, done=done)
    assert cut.train.max_steps == expected and len(said) == (expected != steps)
    table["train"]["max_steps"] = expected
    assert cut == build(PretrainConfig, table, source="a test")
