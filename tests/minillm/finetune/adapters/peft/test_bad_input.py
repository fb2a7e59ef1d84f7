"""Folders that are no adapters, damaged ones and those of other models: one line, and the model stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach, attached, detach
from minillm.finetune.adapters.config import BitFitConfig, HoulsbyConfig, IA3Config, LoRAConfig, PrefixConfig
from minillm.finetune.adapters.peft import load_peft, save_peft

Q = "base_model.model.transformer.h.0.attn.c_attn"


@pytest.fixture
def saved(pairs: Any, tmp_path: Path) -> tuple[Any, Path]:
    """GPT-2 and a folder with a LoRA of it."""
    pair = pairs("gpt2")
    attach(pair.ours, LoRAConfig(rank=2, targets=("q",)))
    save_peft(pair.ours, tmp_path / "adapter", family=pair.family, purpose=pair.purpose)
    detach(pair.ours)
    return pair, tmp_path / "adapter"


def change_settings(folder: Path, **changed: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change_tensors(folder: Path, changed: dict[str, torch.Tensor | None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), **changed}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def refused(pair: Any, folder: Path, match: str) -> None:
    """Check for one line, and that nothing is attached."""
    with pytest.raises(InputError, match=match) as caught:
        load_peft(pair.ours, folder, family=pair.family, purpose=pair.purpose)
    assert "\n" not in str(caught.value) and not attached(pair.ours)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"peft_type": "VERA"}, "of the method VERA; known here are LORA, ADALORA, IA3, PREFIX_TUNING"),
        ({"peft_type": None}, "of the method None"),
        ({"bias": "all"}, "bias = 'all', which has no counterpart"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices = \[1\]"),
        ({"lora_alpha": "much"}, "is damaged"),
        ({"alpha_pattern": {"(": 2}}, "is damaged"),
        ({"lora_alpha": -1}, "alpha must be above 0"),
        ({"peft_type": "PREFIX_TUNING"}, "no tensor prompt_embeddings"),
        ({"peft_type": "IA3"}, "is damaged"),
    ],
    ids=str,
)
def test_settings(saved: Any, settings: dict[str, Any], match: str) -> None:
    """What has no counterpart here is named, and so is what cannot be read."""
    pair, folder = saved
    change_settings(folder, **settings)
    refused(pair, folder, match)


@pytest.mark.parametrize(
    "tensors, match",
    [
        ({f"{Q}.lora_B.weight": None}, r"no tensor transformer.h.0.attn.c_attn.lora_B \(48, 2\)"),
        ({f"{Q}.lora_A.weight": None}, "is damaged"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 15)}, r"lora_A \(r, 16\), the file has \(2, 15\)"),
        ({f"{Q}.lora_B.weight": torch.ones(48, 3)}, r"lora_B \(48, 2\), the file has \(48, 3\)"),
        ({f"{Q}.lora_A.weight": torch.ones(())}, "is damaged"),
        ({f"{Q}.lora_A.weight": torch.ones(0, 16), f"{Q}.lora_B.weight": torch.ones(48, 0)}, "is damaged"),
        (
            {"base_model.model.score.weight": torch.ones(2, 2)},
            r"adapter_model.safetensors has a tensor score.weight \(2, 2\) that the model does not ask for",
        ),
        (
            {"base_model.model.h.9.attn.lora_A.weight": torch.ones(2, 2)},
            "adapter at h.9.attn, which GPT-2 here has not",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_tensors(saved: Any, tensors: dict[str, Any], match: str) -> None:
    """Missing, misshapen, empty and surplus ones are named."""
    pair, folder = saved
    change_tensors(folder, tensors)
    refused(pair, folder, match)


def test_files(saved: Any) -> None:
    """No folder, half a file, a pickle, no JSON."""
    pair, folder = saved
    refused(pair, folder / "nothing", "has no adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(pair, folder, "damaged")
    weights.rename(folder / "adapter_model.bin")
    refused(pair, folder, "pickle, adapter_model.bin.*save_pretrained")
    (folder / "adapter_config.json").write_text("[1")
    weights.write_bytes(whole)
    refused(pair, folder, "adapter_config.json")


def test_what_peft_has_not(pairs: Any, tmp_path: Path) -> None:
    """Bottlenecks and biases alone; inputs of a fused module's parts scaled apart."""
    pair = pairs("gpt2")
    for config, match in (
        (HoulsbyConfig(width=2), "PEFT has no adapter of the kind houlsby"),
        (BitFitConfig(), "PEFT has no adapter of the kind bitfit"),
        (IA3Config(targets=(), input_targets=("v",)), "cannot have inputs scaled apart"),
        (IA3Config(targets=("k",), input_targets=("v",)), "cannot scale both inputs and outputs"),
    ):
        attach(pair.ours, config)
        with pytest.raises(InputError, match=match):
            save_peft(pair.ours, tmp_path / "adapter", family=pair.family, purpose=pair.purpose)
        detach(pair.ours)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, match",
    [("gpt2", "GPT-2 has learned ones"), ("bert", "BERT has none"), ("mistral", "falls out of a sliding window")],
)
def test_prefixes_that_would_do_something_else(pairs: Any, tmp_path: Path, name: str, match: str) -> None:
    """Learned positions would move, encoders have no cache, windows hide a prefix."""
    pair = pairs(name)
    attach(pair.ours, PrefixConfig(length=2))
    with pytest.raises(InputError, match=match):
        save_peft(pair.ours, tmp_path / "adapter", family=pair.family, purpose=pair.purpose)


@pytest.mark.parametrize("shape", [(0, 0), (2, -1)], ids=["no-keys", "narrow"])
def test_a_prefix_that_does_not_fit_the_model(pairs: Any, tmp_path: Path, shape: tuple[int, int]) -> None:
    """Of two keys: one without any, and one of another width."""
    pair, folder = pairs("llama"), tmp_path / "adapter"
    attach(pair.ours, PrefixConfig(length=2))
    save_peft(pair.ours, folder, family=pair.family, purpose=pair.purpose)
    detach(pair.ours)
    length, narrower = shape
    (prompt,) = load_file(folder / "adapter_model.safetensors").values()
    change_tensors(folder, {"prompt_embeddings": prompt[:length, : prompt.shape[1] + narrower].contiguous()})
    came = rf"\({length}, {prompt.shape[1] + narrower}\)"
    refused(pair, folder, rf"asks for prompt_embeddings \(P, {prompt.shape[1]}\), P at least 1, the file has {came}")


def test_a_folder_of_something_else_is_not_replaced(saved: Any, tmp_path: Path) -> None:
    """Only an empty folder, or one with an adapter and nothing else."""
    pair, folder = saved
    attach(pair.ours, LoRAConfig(rank=2))
    save_peft(pair.ours, folder, family=pair.family, purpose=pair.purpose)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="has thesis.txt beside an adapter"):
        save_peft(pair.ours, folder, family=pair.family, purpose=pair.purpose)
    assert (folder / "thesis.txt").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("Dear")
    for place, match in (
        (tmp_path / "letters", "holds no adapter of PEFT's"),
        (tmp_path / "letters/dear.txt", "a file"),
    ):
        with pytest.raises(InputError, match=match):
            save_peft(pair.ours, place, family=pair.family, purpose=pair.purpose)
    assert (tmp_path / "letters/dear.txt").read_text() == "Dear"
