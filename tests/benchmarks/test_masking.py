"""The masking table: every model is asked the same, means and deviations are theirs, and no run is made twice."""

import json
from pathlib import Path

from benchmarks import masking
from benchmarks.masking import Run, page, train, verdict
from minillm.pretrain_config import preset_table

LETTERS = Path(__file__).parents[2] / "data/samples/letters.txt"
HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-02T00:00"}


def run_of(masking="token", rate=0.15, seed=0, **given):
    """A run with made-up figures."""
    figures = {"loss": 4.0, "accuracy": 0.25, "seconds": 60.0, "tokens_per_second": 1000.0, "steps": 9}
    return Run(masking=masking, rate=rate, seed=seed, commit="abc", **figures | given)


def test_models_are_asked_the_same_whatever_they_learnt_from(tmp_path):
    """A learning rate of nothing: the untrained model has one loss, by whatever masking it did not learn."""
    table = preset_table("tiny-encoder") | {
        "tokenizer": {"kind": "bpe", "vocab_size": 320},
        "data": {"input": str(LETTERS)},
    }
    table["model"] |= {"context": 16, "num_layers": 1, "width": 16, "num_heads": 2}
    table["optim"] = {"learning_rate": 1e-30, "weight_decay": 0.0}
    table["train"] = {"batch_size": 4, "device": "cpu"}
    runs = [train(kind, rate, 0, 2, table=table, scratch=tmp_path) for kind, rate in (("token", 0.15), ("span", 0.4))]
    assert [(run.masking, run.rate, run.steps) for run in runs] == [("token", 0.15, 2), ("span", 0.4, 2)]
    assert runs[0].loss == runs[1].loss and runs[0].accuracy == runs[1].accuracy
    assert all(run.seconds > 0 and run.tokens_per_second > 0 for run in runs)


def test_rows_are_means_and_deviations_best_first():
    """By hand: 4.0, 4.2 and 4.4 have the mean 4.2 and the deviation 0.2; of 70, 60 and 50 seconds the least is 50."""
    runs = [run_of(seed=seed, loss=loss, seconds=70.0 - 10 * seed) for seed, loss in enumerate((4.0, 4.2, 4.4))]
    runs += [run_of("span", 0.4, seed, loss=3.0 + seed / 10, accuracy=0.3 + seed / 100) for seed in range(3)]
    rows = [line for line in page(runs, HEAD).splitlines() if line.startswith(("| span", "| token"))]
    assert rows == [
        "| span | 0.4 | 3.100 ± 0.100 | 31.0 ± 1.0 | 60 | 3 |",
        "| token | 0.15 | 4.200 ± 0.200 | 25.0 ± 0.0 | 50 | 3 |",
    ]
    assert page(runs, HEAD).endswith("Lowest loss: span at 0.4, by these seeds.\n")


def test_what_the_seeds_do_not_tell_apart_is_said():
    """Deviations of 0.1 and 3 seeds: a standard error of 0.082, so means 0.1 apart are not told apart, 0.2 are."""
    low, near, far = (
        [run_of(name, rate, seed, loss=mean + (seed - 1) / 10) for seed in range(3)]
        for name, rate, mean in (("token", 0.15, 4.0), ("span", 0.3, 4.1), ("whole_word", 0.4, 4.2))
    )
    assert verdict([low, near, far]) == "Lowest loss: token at 0.15, not told apart by these seeds from span at 0.3."
    assert "one seed does not tell" in verdict([low[:1], near[:1]])


def test_the_command_makes_what_is_missing_and_keeps_it_at_once(tmp_path, monkeypatch, capsys):
    """A seed of too few steps, two of as many as are asked for, then a third one: the first is made anew."""
    made, path = [], tmp_path / "MASKING.json"

    def train(kind, rate, seed, steps, **_):
        made.append((seed, steps, len(json.loads(path.read_text())["runs"]) if path.exists() else 0))
        return run_of(kind, rate, seed, steps=steps)

    monkeypatch.setattr(masking, "train", train)
    for steps, seeds in (("5", "1"), ("9", "2"), ("9", "3")):
        words = ["--kinds", "span", "--rates", "0.3", "--out", str(tmp_path)]
        assert masking.main([*words, "--steps", steps, "--seeds", seeds]) == 0
    assert made == [(0, 5, 0), (0, 9, 1), (1, 9, 1), (2, 9, 2)]
    assert [(run["seed"], run["steps"]) for run in json.loads(path.read_text())["runs"]] == [(0, 9), (1, 9), (2, 9)]
    assert "| span | 0.3 | 4.000 ± 0.000 |" in (tmp_path / "MASKING.md").read_text()
    assert capsys.readouterr().out.splitlines()[-1].endswith("MASKING.md")
