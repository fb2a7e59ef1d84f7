"""A head for a task goes with its adapter, BERT's pooler in it: PEFT's `modules_to_save`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach, detach
from minillm.finetune.adapters.config import LoRAConfig
from minillm.finetune.adapters.peft import load_peft, save_peft
from minillm.finetune.adapters.peft.read import missing_head
from minillm.finetune.config import HeadConfig
from minillm.finetune.heads import TextHead
from minillm.model.transformer import build_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
TOKENS = torch.arange(2, 22).reshape(2, 10)
SAVED = {  # what each family's classifier consists of
    "bert": ["classifier", "pooler"],
    "roberta": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "modernbert": ["classifier", "head"],
    "gpt2": ["score"],
    "llama": ["score"],
    "mistral": ["score"],
    "qwen3": ["score"],
}


class Classifier(nn.Module):
    """A backbone and the family's own head for three labels."""

    def __init__(self, pair: Any) -> None:
        super().__init__()
        config, wanted = dataclasses.replace(pair.config, head="none", head_bias=False), pair.family.task_heads
        head: Any = wanted["classification"]
        self.backbone = build_model(config)
        self.head = TextHead(HeadConfig(pooling=head.pooling[0], layer=head.layer, bias=head.bias), config, outputs=3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(tokens), starts=None, lengths=None)


@pytest.fixture(params=SAVED)
def both(request: pytest.FixtureRequest, pairs: Any) -> tuple[Any, Classifier, Any]:
    """A family, our classifier, and theirs with its weights."""
    pair = pairs(request.param)
    torch.manual_seed(3)
    ours = Classifier(pair).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return pair, ours, pair.build("classification", ours, ours.backbone.config, num_labels=3)


TARGETS = {"bert": "query", "roberta": "query", "distilbert": "q_lin", "modernbert": "Wqkv", "gpt2": "c_attn"}


def stir(model: nn.Module) -> None:
    """Move what learns, the head too."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(TOKENS) if isinstance(model, Classifier) else model(input_ids=TOKENS).logits


def test_ours_in_peft(both: Any, same: Any, tmp_path: Path) -> None:
    """The trained head and pooler are in the folder, and nothing else of the model."""
    pair, ours, theirs = both
    attach(ours, LoRAConfig(rank=2))
    stir(ours)
    save_peft(ours, tmp_path, family=pair.family, purpose="classification")
    wanted = logits(ours)
    same(logits(PeftModel.from_pretrained(theirs, tmp_path)), wanted)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["modules_to_save"] == SAVED[pair.family.model_type]
    stir(ours.head)
    detach(ours)
    load_peft(ours, tmp_path, family=pair.family, purpose="classification")
    same(logits(ours), wanted)


def test_theirs_here(both: Any, same: Any, tmp_path: Path) -> None:
    """What PEFT saves of a classifier is loaded, the pooler where it was saved."""
    pair, ours, theirs = both
    first = TARGETS.get(pair.family.model_type, "q_proj")
    saved = SAVED[pair.family.model_type]
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=[first], modules_to_save=saved)
    trained = get_peft_model(theirs, config).eval()
    stir(trained)
    trained.save_pretrained(str(tmp_path))
    load_peft(ours, tmp_path, family=pair.family, purpose="classification")
    same(logits(ours), logits(trained))


@pytest.mark.parametrize("both", ["bert", "roberta"], indirect=True)
def test_another_head(both: Any) -> None:
    """A head that their class has not is named."""
    pair, ours, _ = both
    ours.head = TextHead(HeadConfig(pooling="mean"), ours.backbone.config, outputs=3)
    attach(ours, LoRAConfig(rank=2))
    with pytest.raises(InputError, match="this model lacks head.pooler.dense"):
        save_peft(ours, Path("nowhere"), family=pair.family, purpose="classification")


NOT_SAVED = {  # unless PEFT is told to
    "bert": ["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
    "modernbert": ["head.dense.weight", "head.norm.weight"],
}


@pytest.mark.parametrize("both", NOT_SAVED, indirect=True)
def test_a_layer_that_was_not_saved(both: Any, same: Any, tmp_path: Path) -> None:
    """PEFT takes the base's, and so do we from a base that has its head; of any other model it is missed by name."""
    pair, ours, theirs = both
    name = pair.family.model_type
    trained = get_peft_model(theirs, peft.LoraConfig(task_type="SEQ_CLS", target_modules=[TARGETS[name]])).eval()
    stir(trained)
    trained.save_pretrained(str(tmp_path))
    assert missing_head(tmp_path, pair.family, "classification") == NOT_SAVED[name]
    with pytest.raises(InputError, match=f"no tensor {NOT_SAVED[name][0]}.*, which the model asks"):
        load_peft(ours, tmp_path, family=pair.family, purpose="classification")
    load_peft(ours, tmp_path, family=pair.family, purpose="classification", has_head=True)
    same(logits(ours), logits(trained))
