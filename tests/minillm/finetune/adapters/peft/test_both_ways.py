"""PEFT loads our folders onto transformers' models and gives our logits, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from minillm.finetune.adapters.attach import adapter_tensors, attach, attached, detach
from minillm.finetune.adapters.config import AdaLoRAConfig, AdapterConfig, IA3Config, LoRAConfig, PrefixConfig
from minillm.finetune.adapters.peft import load_peft, save_peft

# What the two libraries say of themselves, and of GPT-2's layers and of tables that are tied: all of it is meant here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
ADAPTERS = {
    "lora": LoRAConfig(rank=3, alpha=5.0),
    "lora-everywhere": LoRAConfig(rank=3, alpha=5.0, targets=("all",)),
    "rslora": LoRAConfig(rank=3, alpha=5.0, targets=("q", "v", "down"), rank_stabilised=True),
    "lora-one-layer": LoRAConfig(rank=2, targets=("blocks.1.attention.k", "blocks.0.mlp.up")),
    "lora-table": LoRAConfig(rank=2, targets=("embeddings.tokens", "v")),
    "dora": LoRAConfig(rank=2, targets=("q", "output"), dora=True),
    "adalora": AdaLoRAConfig(rank=3, target_rank=2, targets=("q", "v", "down")),
    "ia3": IA3Config(),
}


def stirred(model: nn.Module) -> None:
    """Move what learns, as training would; nothing here is far from its start by chance."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_ours_in_peft(pair: Any, same: Any, config: AdapterConfig, tmp_path: Path) -> None:
    """Logits of PEFT's model with our folder are those of our model, and other than without; and it comes back."""
    bare = pair.logits()
    attach(pair.ours, config)
    stirred(pair.ours)
    save_peft(pair.ours, tmp_path / "adapter", family=pair.family, purpose=pair.purpose)
    wanted = pair.logits()
    assert (wanted - bare).abs().max() > 0.01
    same(pair.logits(PeftModel.from_pretrained(pair.theirs, tmp_path / "adapter")), wanted)

    before = {name: tensor.clone() for name, tensor in adapter_tensors(pair.ours, "adapter").items()}
    detach(pair.ours)
    back = load_peft(pair.ours, tmp_path / "adapter", family=pair.family, purpose=pair.purpose)
    same(pair.logits(), wanted)
    assert type(back) is type(config) and attached(pair.ours)["adapter"] == back
    if not isinstance(config, AdaLoRAConfig):  # whose alpha goes through PEFT's r + 1e-5
        after = adapter_tensors(pair.ours, "adapter")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def peft_configs(model: nn.Module) -> dict[str, peft.PeftConfig]:
    """Return PEFT's own configurations, on the linear layers of a model's blocks, fused ones whole."""
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if ".0." in f".{name}." and is_linear(module)
    }
    targets, inside = sorted(names), sorted(names & {"dense", "lin2", "Wo", "c_proj", "down_proj"})
    lora: dict[str, Any] = {"target_modules": targets, "r": 4, "lora_alpha": 6, "init_lora_weights": False}
    patterns = {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[-1]: 9}}
    return {
        "lora": peft.LoraConfig(**lora),
        "patterns": peft.LoraConfig(**lora, **patterns),
        "rslora": peft.LoraConfig(**lora, use_rslora=True),
        "dora": peft.LoraConfig(**lora, use_dora=True),
        "adalora": peft.AdaLoraConfig(target_modules=targets, init_r=3, target_r=2, lora_alpha=6, total_step=9),
        "ia3": peft.IA3Config(target_modules=targets, feedforward_modules=inside),
    }


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@pytest.mark.parametrize("kind", ["lora", "patterns", "rslora", "dora", "adalora", "ia3"])
def test_theirs_here(pair: Any, same: Any, kind: str, tmp_path: Path) -> None:
    """An adapter that PEFT made and saved, on every linear layer, fused ones as one."""
    theirs = get_peft_model(pair.theirs, peft_configs(pair.theirs)[kind]).eval()
    stirred(theirs)
    theirs.save_pretrained(str(tmp_path))
    bare = pair.logits()
    load_peft(pair.ours, tmp_path, family=pair.family, purpose=pair.purpose)
    wanted = pair.logits(theirs)
    assert (wanted - bare).abs().max() > 0.01
    same(pair.logits(), wanted)


@pytest.mark.parametrize("mlp_width", [None, 7], ids=["table", "network"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_prefix(pairs: Any, same: Any, name: str, mlp_width: int | None, tmp_path: Path) -> None:
    """Both ways where positions are rotary, though PEFT counts the text's positions from behind the prefix."""
    pair = pairs(name)
    attach(pair.ours, PrefixConfig(length=5, mlp_width=mlp_width))
    stirred(pair.ours)
    save_peft(pair.ours, tmp_path, family=pair.family, purpose=pair.purpose)
    wanted = pair.logits()
    same(pair.logits(PeftModel.from_pretrained(pair.theirs, tmp_path)), wanted)
    detach(pair.ours)
    assert load_peft(pair.ours, tmp_path, family=pair.family, purpose=pair.purpose) == PrefixConfig(length=5)
    same(pair.logits(), wanted)


def test_prefix_of_peft(pairs: Any, same: Any, tmp_path: Path) -> None:
    """One that PEFT made, its network gone into the table when it was saved."""
    pair = pairs("llama")
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6
    )
    theirs = get_peft_model(pair.theirs, config).eval()
    theirs.save_pretrained(str(tmp_path))
    load_peft(pair.ours, tmp_path, family=pair.family, purpose=pair.purpose)
    same(pair.logits(), pair.logits(theirs))


def test_settings_are_short(pairs: Any, tmp_path: Path) -> None:
    """Names of modules are the shortest that mean no other; a fused one has its parts' rank and alpha together."""
    pair = pairs("gpt2")
    attach(pair.ours, LoRAConfig(rank=3, alpha=5.0, targets=("q", "v", "output")))
    save_peft(pair.ours, tmp_path, family=pair.family, purpose=pair.purpose)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["attn.c_proj", "c_attn"] and settings["fan_in_fan_out"]
    sizes = {settings["r"]: settings["lora_alpha"]} | {
        rank: settings["alpha_pattern"][module] for module, rank in settings["rank_pattern"].items()
    }
    assert sizes == {3: 5.0, 6: 10.0}
