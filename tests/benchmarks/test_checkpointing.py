"""The benchmark of checkpoints: its figures are of one checkpoint, and a slow disk shows in them."""

import time

import pytest
import torch

from benchmarks import checkpointing
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build
from minillm.pretrain_config import PretrainConfig

SMALL = {
    "model": {"kind": "decoder", "vocab_size": 64, "context": 8, "num_layers": 1, "width": 8, "num_heads": 1},
    "train": {"batch_size": 2, "device": "cpu"},
}


def measured(place):
    config = build(PretrainConfig, SMALL, source="a test")
    return checkpointing.measure(config, "small", place, pairs=3, steps=2, device=torch.device("cpu"))


def test_a_slow_disk_shows(tmp_path, monkeypatch):
    """Half a second more for each write: training does not stand still for it, and the cost holds it."""
    real = RunFolder.save

    def slow(self, *words, **options):
        time.sleep(0.5)
        return real(self, *words, **options)

    monkeypatch.setattr(RunFolder, "save", slow)
    cost = measured(tmp_path / "run")
    assert cost.held < 0.5 < cost.cost_most and cost.cost_least <= cost.cost <= cost.cost_most
    assert cost.share == pytest.approx(cost.cost / (250 * cost.step))
    size = sum(path.stat().st_size for path in next((tmp_path / "run/checkpoints").glob("step-*")).iterdir())
    assert cost.megabytes == pytest.approx(size / 1e6, rel=0.01)
    assert "NOT below the 2%" in checkpointing.line(cost) or cost.share < 0.02


def test_the_command_prints_and_keeps_the_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpointing, "preset_table", lambda name: {k: dict(v) for k, v in SMALL.items()})
    words = ["--pairs", "1", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "new/cost.json")]
    assert checkpointing.main(words) == 0
    assert "parameters, a checkpoint of" in capsys.readouterr().out and (tmp_path / "new/cost.json").exists()
