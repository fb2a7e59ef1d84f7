"""What a fine-tuning run learns and leaves behind, plots too."""

import json

import pytest

from minillm.finetune.run import finetune
from minillm.training.records import read_columns


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_run_learns_and_leaves_what_it_should(settings, tmp_path, kind):
    """From a table to a report: a task of six words is learnt, and the folder holds all that belongs to it."""
    config = settings(kind, train__max_steps=40, train__eval_every=20)
    result = finetune(config, tmp_path / "run")
    table = result.json()
    assert table["valid"].keys() >= {"accuracy", "macro_f1", "mcc", "loss"} <= table["test"].keys()
    assert table["test"]["accuracy"] > 0.9 > table["baselines"]["majority"]["test"]["accuracy"]
    assert table["baselines"].keys() == {"majority", "tfidf"} and table["examples_per_second"] > 0
    for name in ("config.toml", "corpus.json", "tokenizer/tokenizer.toml", "metrics.csv", "timing.csv", "loss.png"):
        assert (tmp_path / "run" / name).exists(), name
    for name in ("report.md", "report.json", "confusion.png", "reliability.png", "learning_curves.png"):
        assert (tmp_path / "run/report" / name).stat().st_size > 0, name
    kept = json.loads((tmp_path / "run/checkpoints/step-000040/config.json").read_text())
    assert kept["task"]["labels"] == ["bad", "good"] and kept["backbone"]["head"] == "none"
    columns = read_columns(tmp_path / "run/metrics.csv")
    assert columns["valid_accuracy"][-1] is not None
    assert sum(v is not None for v in columns["valid_macro_f1"]) == 2
