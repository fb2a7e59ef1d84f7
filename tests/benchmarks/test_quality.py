"""Small recipes and their peer: the same text, the same judgement, and a page that says what the runs say."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import quality
from benchmarks.quality import CONTENDERS, Run, loss_of_peer, page, train
from minillm.data.batch import IGNORED, Batch

LETTERS = Path(__file__).parents[2] / "data/samples/letters.txt"
HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "date": "2026-01-02T00:00"}


def run_of(contender, seed, **given) -> Run:
    """A run with made-up figures."""
    figures = {"steps": 9, "loss": 1.5, "seconds": 2.0, "tokens_per_second": 1000.0, "commit": "abc"}
    return Run(contender=contender.name, seed=seed, **figures | given)


@pytest.mark.parametrize("contender", CONTENDERS[1:4], ids=lambda c: c.name)
def test_a_contender_learns_and_is_judged(contender):
    """Two steps: close to log V of a model that knows nothing (V: some 60 characters); of one seed always the same."""
    run, again = (train(contender, 0, LETTERS, steps=2) for _ in range(2))
    assert (run.steps, run.loss) == (2, again.loss)
    assert 0.6 * math.log(60) < run.loss < 1.2 * math.log(80)
    assert run.seconds > 2 * 12 * 64 / run.tokens_per_second  # the judgement is in it


def test_the_loss_of_a_peer_is_a_mean_over_targets_and_not_over_batches():
    """By hand: three targets of loss 1 in one batch and one of loss 5 in the other: (3 * 1 + 5) / 4."""

    class Peer(torch.nn.Module):
        def forward(self, tokens, targets):
            return torch.tensor(1.0 if len(targets[targets != IGNORED]) == 3 else 5.0)

    rows = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, IGNORED, IGNORED]])]
    batches = [Batch(tokens=torch.zeros_like(row), targets=row) for row in rows]
    material = SimpleNamespace(
        held_out=SimpleNamespace(eval_batches=lambda rows: batches), judge=SimpleNamespace(prepare=lambda batch: batch)
    )
    assert loss_of_peer(Peer(), material) == 2.0


def test_rows_are_means_and_deviations():
    """By hand: 1.4, 1.5 and 1.6 have the mean 1.5 and the deviation 0.1."""
    runs = [run_of(CONTENDERS[2], seed, loss=1.4 + seed / 10) for seed in range(3)]
    assert "| shakespeare-char-small | 9 | 1.5000 ± 0.1000 | 2.0 ± 0.0 | 1,000 | 3 |" in page(runs, HEAD).splitlines()


def test_the_page_names_each_commit_of_its_runs_once():
    runs = [run_of(CONTENDERS[2], seed, commit=commit) for seed, commit in enumerate(("b2", "a1", "b2"))]
    assert "On a machine with 2 threads, PyTorch 2, commit a1, b2, 2026-01-02." in page(runs, HEAD).splitlines()


def test_contenders_take_turns_and_no_run_is_made_twice(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(quality, "in_a_process", lambda c, seed, data: made.append((c.name, seed)) or run_of(c, seed))
    names = [CONTENDERS[0].name, CONTENDERS[3].name]
    words = ["--data", str(LETTERS), "--out", str(tmp_path), "--only", *names]
    assert quality.main([*words, "--seeds", "1"]) == 0 and quality.main([*words, "--seeds", "2"]) == 0
    assert made == [(name, seed) for seed in range(2) for name in names]
    assert len(json.loads((tmp_path / "QUALITY.json").read_text())["runs"]) == 4
