"""What stands on the hidden states: how it begins, which biases it has, and what it drops."""

from typing import Any

import pytest
import torch

from minillm.finetune.config import HeadConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.heads import TextHead, TokenHead
from minillm.finetune.task_model import TaskModel
from minillm.model.config import ModelConfig
from minillm.model.layers import Linear, Norm, Pass
from minillm.model.transformer import build_model

SHAPE: dict[str, Any] = {"vocab_size": 9, "context": 4, "num_layers": 2, "width": 64, "num_heads": 2}


@pytest.mark.parametrize("layer", ["none", "relu", "transform"])
@pytest.mark.parametrize("head, pooling", [(TextHead, "pooler"), (TokenHead, "auto")], ids=["text", "token"])
def test_a_head_begins_as_the_models_table_says(head, pooling, layer):
    """Weights from N(0, init_std), biases 0, gains 1: also of the layers before the last."""
    torch.manual_seed(0)
    made = head(HeadConfig(pooling=pooling, layer=layer), ModelConfig(kind="encoder", init_std=0.03, **SHAPE), 50)
    for module in made.modules():
        if isinstance(module, Linear):
            assert module.weight.std().item() == pytest.approx(0.03, rel=0.1)
            assert module.weight.mean().item() == pytest.approx(0.0, abs=3e-3)
        if isinstance(module, Linear | Norm):
            assert module.bias.eq(0).all()
        if isinstance(module, Norm):
            assert module.weight.eq(1).all()


@pytest.mark.parametrize(
    "kind, head, bias, expected",
    [
        ("encoder", TextHead, None, True),
        ("decoder", TextHead, None, False),
        ("decoder", TextHead, True, True),
        ("encoder", TextHead, False, False),
        ("decoder", TokenHead, None, True),
        ("encoder", TokenHead, False, False),
    ],
)
def test_a_bias_is_there_unless_a_decoder_reads_whole_texts_or_none_is_asked_for(kind, head, bias, expected):
    made = head(HeadConfig(bias=bias), ModelConfig(kind=kind, **SHAPE), 3)
    assert (made.dense.bias is not None) == expected


@pytest.mark.parametrize("head", [TextHead, TokenHead], ids=["text", "token"])
def test_what_a_head_drops_is_a_share_of_its_input(head):
    """The last layer is the identity, so that its input comes out: a quarter is 0, the rest 4/3 of what it was."""
    width, p = 64, 0.25
    made = head(HeadConfig(dropout=p), ModelConfig(kind="encoder", **SHAPE), width)
    with torch.no_grad():
        made.dense.weight.copy_(torch.eye(width))
    x = torch.randn(200, 1, width, generator=torch.Generator().manual_seed(0))

    def out(seed):
        return made(x, starts=None, lengths=None, seed=seed).view(200, width)

    dropped = out(torch.tensor(5))
    gone = dropped.eq(0)
    assert gone.float().mean().item() == pytest.approx(p, abs=0.02)
    torch.testing.assert_close(dropped[~gone], x[:, 0][~gone] / (1 - p))
    assert torch.equal(out(torch.tensor(5)), dropped) and not torch.equal(out(torch.tensor(6)), dropped)
    assert torch.equal(out(None), x[:, 0])


@pytest.mark.parametrize("head", [TextHead, TokenHead], ids=["text", "token"])
def test_a_head_drops_at_a_place_of_its_own(monkeypatch, head):
    """No dropout in the backbone has the head's number, and so its pattern."""
    backbone = ModelConfig(kind="encoder", dropout=0.1, attention_dropout=0.1, **SHAPE)
    config = TaskModelConfig(task=TaskFacts(), text=TextConfig(), backbone=backbone, head=HeadConfig())
    model = TaskModel(config, build_model(backbone), head(config.head, backbone, 2)).train()
    plain, sites = Pass.dropout, []

    def listening(self, p, site):
        sites.append(site)
        return plain(self, p, site)

    monkeypatch.setattr(Pass, "dropout", listening)
    model(torch.arange(8).view(2, 4), seed=5)
    assert len(sites) > 6 and sites.count(sites[-1]) == 1
