"""The page of the real BERT: one run a seed, none made twice, and the figures are those that the command told."""

import json
import sys

import pytest

from benchmarks import finetuning, minilm
from benchmarks.finetuning import TABLES, digest_of
from benchmarks.minilm import SETTINGS, Run, folder_of_the_model, page

HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "date": "2026-01-02T00:00"}
HEAD |= {"compute_dtype": "bfloat16"}


def run_of(seed: int, **given) -> Run:
    """A run with made-up figures."""
    figures = {"dev": 0.8, "test": 0.9, "seconds": 100.0, "examples_per_second": 80.0, "peak_bytes": 2**30}
    named = {"seed": seed, "baselines": {"tfidf": {"valid": 0.6, "test": 0.7}}, "data": "0", "commit": "abc"}
    return Run(**named | figures | given)


@pytest.fixture
def tables(tmp_path):
    """A folder with three tables."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in TABLES.values():
        (folder / name).write_text(f"a text of {name}\t0\n")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What `minillm finetune` is asked; it tells its seed as a figure."""
    seen = []

    def told(words):
        seen.append(words)
        seed = int(words[words.index("--train.seed") + 1])
        accuracy = {"accuracy": 0.5 + seed / 100}
        said = {"valid": accuracy, "test": {"accuracy": 0.9}, "seconds": 1.0, "examples_per_second": 70.0}
        return said | {"baselines": {"majority": {"valid": accuracy, "test": accuracy}}}, 2**20

    monkeypatch.setattr(finetuning, "told", told)
    return seen


def words_of(tables, tmp_path, *more: str) -> list[str]:
    return ["--data", str(tables), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *more]


def test_a_seed_is_run_once(asked, tables, tmp_path, capsys):
    """Two seeds, then three: the third alone is new; the files hold all."""
    assert minilm.main(words_of(tables, tmp_path, "--seeds", "2")) == 0
    assert minilm.main(words_of(tables, tmp_path)) == 0
    assert [words[words.index("--train.seed") + 1] for words in asked] == ["0", "1", "2"]
    runs = json.loads((tmp_path / "out/MINILM.json").read_text())["runs"]
    assert [(run["seed"], run["dev"]) for run in runs] == [(0, 0.5), (1, 0.51), (2, 0.52)]
    written = (tmp_path / "out/MINILM.md").read_text()
    assert "| minillm, 3 seeds | 0.510 ± 0.010 | 0.900 ± 0.000 | 70 ± 0 |" in written
    assert written in capsys.readouterr().out


def test_runs_on_other_tables_are_not_mixed(asked, tables, tmp_path, capsys):
    """One more row of dev.tsv is another set of tables."""
    minilm.main(words_of(tables, tmp_path, "--seeds", "1"))
    before = digest_of(tables)
    with (tables / "dev.tsv").open("a") as file:
        file.write("one more\t1\n")
    assert digest_of(tables) != before
    with pytest.raises(SystemExit) as stopped:
        minilm.main(words_of(tables, tmp_path))
    assert stopped.value.code == 2 and "has runs on other tables" in capsys.readouterr().err
    assert len(asked) == 1


def test_the_page_by_hand():
    """60, 62 and 64 have the mean 62 and the deviation 2; transformers' figures stand below, with what they are."""
    lines = page([run_of(seed, test=0.60 + seed / 50) for seed in range(3)], HEAD).splitlines()
    assert "| minillm, seed 1 | 0.800 | 0.620 | 80 | 100 | 1,024 |" in lines
    assert "| minillm, 3 seeds | 0.800 ± 0.000 | 0.620 ± 0.020 | 80 ± 0 | 100 ± 0 | 1,024 ± 0 |" in lines
    assert "| transformers | 0.875 | 0.892 | 75 |  |  |" in lines and "| tfidf | 0.600 | 0.700 |  |  |  |" in lines
    assert any("measured elsewhere" in line and "AMX" in line for line in lines)
    assert not any("seeds" in line for line in page([run_of(0)], HEAD).splitlines())


def test_settings_are_words_that_finetune_takes(monkeypatch):
    """The command line itself reads them; only the work is left out."""
    from minillm.cli import finetune

    seen = []
    monkeypatch.setattr("minillm.finetune.run.finetune", lambda config, *_, **__: seen.append(config) or sys.exit(0))
    with pytest.raises(SystemExit):
        finetune.main([str(folder_of_the_model()), "--train", "t.tsv", "--valid", "v.tsv", *SETTINGS])
    (config,) = seen
    assert (config.train.epochs, config.train.batch_size, config.train.evals_per_epoch) == (3.0, 32, 1)
    assert (config.text.max_length, config.optim.learning_rate, config.optim.warmup_fraction) == (64, 5e-5, 0.06)
    assert config.optim.schedule == "linear"


def test_the_model_is_the_packages(request):
    """The folder that the tests of the import read too, and its width, by which the compute dtype is chosen."""
    found = folder_of_the_model()
    assert found == request.getfixturevalue("minilm")
    assert json.loads((found / "config.json").read_text())["hidden_size"] == 384


def test_a_package_that_is_missing_is_one_line(monkeypatch, tables, tmp_path, capsys):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package")
    with pytest.raises(SystemExit) as stopped:
        minilm.main(words_of(tables, tmp_path))
    assert stopped.value.code == 2 and "pip install no-such-package" in capsys.readouterr().err
