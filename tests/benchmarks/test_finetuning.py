"""The fine-tuning table: rates are chosen on dev alone, no run is made twice, and the page says what the runs say."""

import shutil
import sys

import pytest

from benchmarks import finetuning
from benchmarks.finetuning import METHODS, Cost, Method, Run, best_rate, missing, page, told, verdicts

HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "date": "2026-01-02T00:00"}
ABOUT = {"header": HEAD, "epochs": 3.0}
SCRATCH, FULL = METHODS[:2]


def run_of(method: Method, rate: float, seed: int, **given) -> Run:
    """A run with made-up figures."""
    figures = {"valid": 0.7, "test": 0.6, "parameters": 9}
    named = {"backbone": method.backbone, "method": method.name, "rate": rate, "seed": seed, "commit": "abc"}
    return Run(**named | {"baselines": {"majority": 0.5}} | figures | given)


def test_the_rate_is_chosen_on_dev_with_seed_0():
    """The middle rate is best on dev; the highest is better on test, and seed 1 says otherwise: neither counts."""
    low, middle, high = FULL.rates
    runs = [run_of(FULL, low, 0, valid=0.5), run_of(FULL, middle, 0, valid=0.8)]
    assert best_rate(runs, FULL) is None
    runs += [run_of(FULL, high, 0, valid=0.7, test=1.0), run_of(FULL, high, 1, valid=1.0)]
    assert best_rate(runs, FULL) == middle
    assert best_rate([run_of(FULL, rate, 0) for rate in FULL.rates], FULL) == low


def test_all_rates_of_all_methods_come_first_and_then_seed_by_seed():
    """Made runs of 13 methods: 3 rates, then 2 seeds at the chosen one; and none is made twice."""
    runs: list[Run] = []
    while (wanted := missing(runs, 3)) is not None:
        runs.append(run_of(*wanted))
    made = [(run.backbone, run.method, run.rate, run.seed) for run in runs]
    assert len(made) == len(set(made)) == len(METHODS) * 5
    assert [seed for *_, seed in made] == [0] * 39 + [1] * 13 + [2] * 13


def test_rows_are_means_and_deviations_at_the_chosen_rate():
    """By hand: 60, 62 and 64 have the mean 62 and the deviation 2; the other rates' runs are left out."""
    low, *others = FULL.rates
    runs = [run_of(FULL, rate, 0, valid=0.1, test=0.0) for rate in others]
    runs += [run_of(FULL, low, seed, test=0.60 + seed / 50) for seed in range(3)]
    lines = page(runs, [], ABOUT).splitlines()
    assert f"| encoder | everything | 9 | {low:g} | 70.0 ± 0.0 | 62.0 ± 2.0 |  |  |" in lines
    assert "|  | majority |  |  |  | 50.0 |  |  |" in lines


def test_costs_are_medians_of_turns():
    """Of 7, 9 and 30 examples/s the median is 9; the first pass of another method does not count."""
    of_full = {"backbone": FULL.backbone, "method": FULL.name, "peak_bytes": 2**21}
    costs = [Cost(**of_full, turn=turn, examples_per_second=rate) for turn, rate in ((1, 30.0), (2, 7.0), (3, 9.0))]
    costs.append(Cost(**of_full | {"method": SCRATCH.name}, turn=1, examples_per_second=1000.0))
    lines = page([run_of(FULL, rate, 0) for rate in FULL.rates], costs, ABOUT).splitlines()
    assert f"| encoder | everything | 9 | {FULL.rates[0]:g} | 70.0 | 60.0 | 9 | 2 |" in lines
    assert any("medians of 3 turns" in line for line in lines)


@pytest.mark.parametrize(
    "gain, words", [(0.1, "+10.0 points on test, more than"), (0.01, "+1.0 points on test, not more")]
)
def test_what_pretraining_gives_is_held_against_the_seeds(gain, words):
    """Deviations of 0.02 and 3 seeds: a standard error of the difference of 0.016."""
    runs = [run_of(m, rate, 0, valid=0.0) for m in (SCRATCH, FULL) for rate in m.rates[1:]]
    runs += [run_of(SCRATCH, SCRATCH.rates[0], seed, test=0.6 + seed / 50) for seed in range(3)]
    runs += [run_of(FULL, FULL.rates[0], seed, test=0.6 + gain + seed / 50) for seed in range(3)]
    assert words in "".join(verdicts(runs))


def test_what_was_made_is_not_made_again(tmp_path, monkeypatch, capsys):
    """The first command makes 65 runs and 13 costs, the second two turns of costs, the third nothing."""
    made = []

    def run(_, method, rate, seed, epochs):
        made.append("run")
        return run_of(method, rate, seed)

    def cost(_, method, rate, turn):
        made.append("cost")
        return Cost(backbone=method.backbone, method=method.name, turn=turn, examples_per_second=1.0, peak_bytes=1)

    monkeypatch.setattr(finetuning.Laboratory, "run", run)
    monkeypatch.setattr(finetuning.Laboratory, "cost", cost)
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("", encoding="utf-8")
    words = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    counts = []
    for rounds in ("1", "3", "3"):
        assert finetuning.main([*words, "--rounds", rounds]) == 0
        counts.append((made.count("run"), made.count("cost")))
        made.clear()
    assert counts == [(65, 13), (0, 26), (0, 0)]
    capsys.readouterr()
    with pytest.raises(SystemExit):  # nor does it stand in a table of other settings or texts
        finetuning.main([*words, "--epochs", "5"])
    (tmp_path / "dev.tsv").write_text("one more\t1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        finetuning.main(words)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("has runs of other epochs or on other tables" in line for line in told)
    assert not made


def test_a_command_is_told_with_the_memory_that_it_had():
    """`minillm kernels` prints an object; a Python with torch has more than 100 MiB."""
    said, peak = told(["kernels", "--json"])
    assert said["device"] and peak > 100 * 2**20


def test_a_command_that_refuses_its_input_has_said_why(capfd):
    with pytest.raises(SystemExit) as stopped:
        told(["generate", "no such run"])
    assert stopped.value.code == 2 and capfd.readouterr().err.count("\n") == 1


def test_a_command_that_ends_by_a_defect_is_an_error(monkeypatch):
    monkeypatch.setattr(finetuning.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="ended with status 1"):
        told(["kernels"])


def test_methods_are_words_that_finetune_takes(monkeypatch):
    """Every method's words are parsed by the command line itself; only the work is left out."""
    from minillm.cli import finetune

    seen = []
    monkeypatch.setattr("minillm.finetune.run.finetune", lambda config, *_, **__: seen.append(config) or sys.exit(0))
    for method in METHODS:
        with pytest.raises(SystemExit):
            finetune.main(["RUN", "--train", "t.tsv", "--valid", "v.tsv", *method.words])
    kinds = [None if config.adapter is None else config.adapter.kind for config in seen]
    assert kinds[3:11] == ["lora", "lora", "adalora", "houlsby", "pfeiffer", "prefix", "ia3", "bitfit"]
    assert [config.random for config in seen] == [m.name.endswith("random weights") for m in METHODS]
