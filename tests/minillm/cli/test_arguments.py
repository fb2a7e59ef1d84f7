"""What several commands take: which checkpoint of a run answers."""

import json
import shutil

import pytest
import torch

import minillm
from minillm.cli import main


@pytest.fixture
def run(tiny_runs, tmp_path):
    """A run whose best checkpoint is that of step 2, and its latest that of step 4."""
    shutil.copytree(tiny_runs["decoder"], tmp_path / "run")
    (tmp_path / "run/checkpoints/best").write_text("step-000002\n")
    return tmp_path / "run"


CHOSEN = pytest.mark.parametrize(
    "words, step", [((), 2), (("--checkpoint", "latest"), 4), (("--checkpoint", "4"), 4)], ids=["best", "latest", "4"]
)


@CHOSEN
def test_the_best_checkpoint_is_judged_unless_another_is_asked_for(run, capsys, words, step):
    assert main(["evaluate", str(run), "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == step


@CHOSEN
def test_the_best_checkpoint_goes_out_unless_another_is_asked_for(run, tmp_path, words, step):
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 0
    came, wanted = minillm.load(tmp_path / "out").model, minillm.load(run, step).model
    other = minillm.load(run, 6 - step).model
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(came.state_dict()[name], tensor)
    assert not torch.equal(wanted.output_weight, other.output_weight)
