"""Every file in benchmarks/recipes is one that `minillm pretrain` takes, and says at its top how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.config import build, read_toml
from minillm.pretrain_config import PretrainConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_is_a_configuration_and_names_the_command_that_runs_it(path):
    table = read_toml(path)
    config: PretrainConfig = build(PretrainConfig, table | {"data": {"input": "stdlib-docs"} | table.get("data", {})})
    assert config.train.max_steps >= 200
    assert f"# minillm pretrain {path.relative_to(ROOT).as_posix()} " in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "plain, variant",
    [
        ("shakespeare-char-small", "shakespeare-char-small-best"),
        ("shakespeare-char-small", "shakespeare-char-small-quick"),
        ("shakespeare-char", "shakespeare-char-best"),
        ("mlm-small", "mlm-small-best"),
    ],
)
def test_variants_of_a_recipe_have_its_size_and_no_more_tokens(plain, variant):
    ours, theirs = (read_toml(ROOT / "benchmarks" / "recipes" / f"{name}.toml") for name in (variant, plain))
    for key in ("kind", "context", "num_layers", "width", "num_heads"):
        assert ours["model"][key] == theirs["model"][key]
    assert ours["tokenizer"] == theirs["tokenizer"]
    windows, at_most = (table["train"]["batch_size"] * table["train"]["max_steps"] for table in (ours, theirs))
    assert windows <= at_most
