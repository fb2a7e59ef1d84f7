"""The commands that make a page each: a mistake is one line and status 2, and costs nothing that was measured."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from benchmarks import loading, muon, quality

LETTERS = Path(__file__).parents[2] / "data/samples/letters.txt"

MISTAKES = [
    (
        "checkpointing",
        "--pairs 0",
        "--pairs must be at least 1, got 0; python -m benchmarks.checkpointing --help lists",
    ),
    ("checkpointing", "--steps -1", "--steps must be at least 1, got -1"),
    ("checkpointing", "--preset huge", "invalid choice: 'huge'"),
    ("checkpointing", "--out FILE/cost.json", "name a folder that can be written"),
    ("checkpointing", "--out EMPTY", "is a folder; name a file in it"),
    ("cpu_defaults", "--ops sinus", "invalid choice: 'sinus'"),
    ("cpu_defaults", "--out FILE", "name a folder that can be written"),
    ("distributed", "--turns 0", "--turns must be at least 1, got 0"),
    ("distributed", "--steps 0", "--steps must be at least 1, got 0"),
    ("distributed", "--batch 0", "train.batch_size must be at least 1, got 0"),
    ("distributed", "--width 100", "model.num_heads (6) must divide model.width (100)"),
    ("distributed", "--out FILE", "name a folder that can be written"),
    ("finetuning", "--data EMPTY", "has no train.tsv; name a folder with train.tsv, dev.tsv and test.tsv"),
    ("finetuning", "--data TABLES --seeds 0", "--seeds must be at least 1, got 0"),
    ("finetuning", "--data TABLES --rounds -1", "--rounds must be at least 0, got -1"),
    ("finetuning", "--data TABLES --epochs 0 --out FILE", "--epochs must be above 0 and finite, got 0.0"),
    ("finetuning", "--data TABLES --out EMPTY --work FILE", "--work"),
    ("loading", "--repeats 0", "--repeats must be at least 1, got 0"),
    ("loading", "--out FILE", "name a folder that can be written"),
    ("masking", "--kinds words", "invalid choice: 'words'"),
    ("masking", "--rates high", "invalid float value: 'high'"),
    ("masking", "--seeds 0", "--seeds must be at least 1, got 0"),
    ("masking", "--rates 1.5 --kinds token --seeds 1 --out EMPTY", "objective.rate must be above 0 and at most 1"),
    ("masking", "--out FILE", "name a folder that can be written"),
    ("minilm", "--data EMPTY", "has no train.tsv"),
    ("minilm", "--data TABLES --seeds 0", "--seeds must be at least 1, got 0"),
    ("minilm", "--data TABLES --out FILE", "name a folder that can be written"),
    ("muon", "--rounds 2", "--rounds must be at least 3, got 2"),
    ("muon", "--out FILE", "name a folder that can be written"),
    ("muon", "--out /proc", "name a folder that can be written"),  # it is there, and nobody may write to it
    ("quality", "--data EMPTY", "is no file; see data/tinyshakespeare/README.md"),
    ("quality", "--data FILE --seeds 0", "--seeds must be at least 1, got 0"),
    ("quality", "--data FILE --out FILE", "name a folder that can be written"),
    ("quality", "--data FILE --out EMPTY --seeds 1 --only shakespeare-char-small", "is neither a .txt nor a .md file"),
]


@pytest.mark.parametrize("name, words, told", MISTAKES, ids=[f"{name} {words}" for name, words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(name, words, told, tmp_path, capfd):
    """FILE is empty, and no folder; nothing is written."""
    places = {"FILE": tmp_path / "file", "EMPTY": tmp_path / "empty", "TABLES": tmp_path / "tables"}
    places["FILE"].touch()
    places["EMPTY"].mkdir()
    places["TABLES"].mkdir()
    for table in ("train", "dev", "test"):
        (places["TABLES"] / f"{table}.tsv").write_text("a text\t0\n")
    for place, path in places.items():
        words = words.replace(place, str(path))
    command = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as stopped:
        command.main(words.split())
    said = capfd.readouterr()
    assert stopped.value.code == 2 and told in said.err and said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith(f"benchmarks.{name}: ")
    assert not list(places["EMPTY"].iterdir())


def test_without_transformers_who_stands_beside_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    peer = quality.CONTENDERS[0].name
    for command, words in ((loading, []), (quality, ["--data", str(LETTERS), "--seeds", "0", "--one", peer])):
        with pytest.raises(SystemExit) as stopped:
            command.main([*words, "--out", str(tmp_path)])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.count("\n") == 1 and "transformers is not installed; install it" in said


def test_a_folder_that_is_not_there_is_made(tmp_path, monkeypatch):
    """Else what took minutes to measure would be lost."""
    made = {"recipe": "a", "matrices": 1, "elements": 1, "difference": 0.0, "seconds": (1.0, 1.0, 1.0)}
    both = [muon.Steps(name=name, **made) for name in (muon.OURS, muon.THEIRS)]
    monkeypatch.setattr(muon, "measure", lambda recipe, rounds: both)
    load = loading.Load(name="a", seconds=1.0, memory=1, weights=1)
    monkeypatch.setattr(loading, "save_gpt2", lambda place: None)
    monkeypatch.setattr(loading, "measure", lambda name, place: load)
    for command in (muon, loading):
        assert command.main(["--out", str(tmp_path / "new/folder")]) == 0
    assert len(list((tmp_path / "new/folder").iterdir())) == 4
