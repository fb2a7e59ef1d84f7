"""Tiny runs on one of the project's samples, made once."""

from pathlib import Path

import pytest

from minillm.config import build
from minillm.pretrain import pretrain
from minillm.pretrain_config import PretrainConfig, preset_table

LETTERS = Path(__file__).parents[2] / "data/samples/letters.txt"


@pytest.fixture(scope="session")
def tiny_config():
    """Return a function: kind, settings such as train={"max_steps": 2} -> a PretrainConfig of a very small run."""

    def make(kind="decoder", **sections):
        table = preset_table(f"tiny-{kind}")
        table["model"] |= {"context": 16, "num_layers": 1, "width": 16, "num_heads": 2}
        table["tokenizer"] = {"kind": "bpe", "vocab_size": 320}
        table["train"] |= {"batch_size": 4, "max_steps": 4, "eval_every": 2, "checkpoint_every": 2, "device": "cpu"}
        table["train"] |= {"keep_checkpoints": 9}
        table["data"] = {"input": str(LETTERS)}
        for section, settings in sections.items():
            table[section] = table[section] | settings
        return build(PretrainConfig, table, source="a test")

    return make


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory, tiny_config):
    """The run folders of a decoder and an encoder, by kind; checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("tiny-runs")
    for kind in ("decoder", "encoder"):
        pretrain(tiny_config(kind), folder / kind)
    return {kind: folder / kind for kind in ("decoder", "encoder")}
