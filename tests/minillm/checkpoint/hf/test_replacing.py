"""An export replaces an export, and nothing of somebody's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.checkpoint.hf.replacing import adapter_obstacle, check_free, model_obstacle
from minillm.errors import InputError


@pytest.fixture
def model(peer, tmp_path) -> Path:
    """A folder as transformers writes it."""
    shutil.copytree(peer("bert", "MaskedLM").folder, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def adapter(peer, tmp_path) -> Path:
    """An adapter in PEFT's format and its base."""
    shutil.copytree(peer("bert", "MaskedLM").folder, tmp_path / "two/base")
    (tmp_path / "two/adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "two/adapter" / name).write_text("{}")
    return tmp_path / "two"


Spoil = Callable[[Path], object]
MODELS: list[tuple[Spoil, str]] = [
    (lambda out: (out / "thesis.txt").write_text("years"), "thesis.txt is none of an export's files"),
    (lambda out: (out / "letters").mkdir(), "letters is none of an export's files"),
    (lambda out: (out / "vocab.txt").mkdir(), "vocab.txt is none of an export's files"),
    (lambda out: (out / "config.json").write_text("{}"), "config.json names none of the families"),
    (lambda out: (out / "config.json").write_text("{"), "config.json names none of the families"),
    (lambda out: (out / "config.json").write_text(json.dumps({"model_type": ["bert"]})), "names none of the families"),
    (lambda out: (out / "config.json").unlink(), "it has no config.json"),
    (lambda out: (out / "model.safetensors").unlink(), "it has no model.safetensors and no model.safetensors.index"),
]


@pytest.mark.parametrize("spoil, hint", MODELS, ids=[hint for _, hint in MODELS])
def test_a_folder_with_anything_else(model, spoil, hint) -> None:
    """The first thing that is no export's is named, and all of it stays."""
    check_free(model, True, model_obstacle)
    spoil(model)
    before = sorted(model.iterdir())
    with pytest.raises(InputError, match=hint):
        check_free(model, True, model_obstacle)
    assert sorted(model.iterdir()) == before


ADAPTERS: list[tuple[Spoil, str]] = [
    (lambda out: (out / "base/thesis.txt").write_text("years"), "thesis.txt is none of an export's files"),
    (lambda out: (out / "adapter/thesis.txt").write_text("years"), "thesis.txt is none of an export's files"),
    (lambda out: (out / "thesis.txt").write_text("years"), "thesis.txt is none of an export's files"),
    (lambda out: (out / "adapter/adapter_config.json").unlink(), "adapter has no adapter_config.json"),
    (lambda out: (out / "base/config.json").unlink(), "base has no config.json"),
    (lambda out: shutil.rmtree(out / "base"), "it has no folder base"),
]


@pytest.mark.parametrize("spoil, hint", ADAPTERS, ids=[f"{n}-{hint}" for n, (_, hint) in enumerate(ADAPTERS)])
def test_an_adapter_with_anything_else(adapter, spoil, hint) -> None:
    """In either of its folders, or beside them."""
    check_free(adapter, True, adapter_obstacle)
    spoil(adapter)
    with pytest.raises(InputError, match=hint):
        check_free(adapter, True, adapter_obstacle)


@pytest.mark.parametrize("obstacle", [model_obstacle, adapter_obstacle])
def test_what_is_free_and_what_is_not(model, adapter, obstacle, tmp_path) -> None:
    """Nothing and an empty folder are free; a file and an export that nobody said to replace are not."""
    there = model if obstacle is model_obstacle else adapter
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a letter")
    for name in ("empty", "nowhere"):
        check_free(tmp_path / name, False, obstacle)
    with pytest.raises(InputError, match="is a file"):
        check_free(tmp_path / "file", True, obstacle)
    with pytest.raises(InputError, match="already holds an export; choose another --out or add --overwrite"):
        check_free(there, False, obstacle)
