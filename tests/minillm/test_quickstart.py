"""`make quickstart` in small: both models, what they show, and what to run next."""

import pytest

from minillm import quickstart
from minillm.data import docstrings, stdlib
from minillm.errors import InputError
from minillm.pretrain_config import preset_table


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Quickstart with tiny models on four documents and every twentieth docstring, in a folder of its own."""
    docs = {
        f"{n}.py": f"Return a list of the names in module {n}, or None if the list is empty.\n" * 40 for n in range(4)
    }
    monkeypatch.setitem(stdlib.CORPORA, "stdlib-docs", lambda: docs)
    monkeypatch.chdir(tmp_path)

    def table(name):
        found = preset_table(name)
        found["model"] |= {"context": 32, "num_layers": 1, "width": 16, "num_heads": 2}
        found["tokenizer"]["vocab_size"] = 300
        found["train"] |= {"max_steps": 2, "eval_every": 0, "checkpoint_every": 0, "batch_size": 2}
        return found

    def few(folder):
        paths = docstrings.write_docstrings(folder)
        for path in paths.values():
            path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[::20]), encoding="utf-8")
        return paths

    monkeypatch.setattr(quickstart, "preset_table", table)
    monkeypatch.setattr(quickstart, "write_docstrings", few)
    return tmp_path


def test_quickstart(small, capsys):
    """A sample, filled holes, both verdicts, plots that exist, and commands for these very runs; twice in a row."""
    for _ in range(2):
        quickstart.main()
    out = capsys.readouterr().out
    assert f"goes on after {quickstart.PROMPT!r}" in out
    assert all(hole in out for hole in quickstart.HOLES) and "%" in out
    assert out.count("decoder: The model beats") == out.count("encoder: The model beats") == 2
    for kind in ("decoder", "encoder"):
        assert (small / f"runs/quickstart/{kind}/loss.png").is_file() and f"runs/quickstart/{kind}" in out
    assert "What next:" in out and "--data.input YOUR.txt" in out


def test_an_interrupted_quickstart_says_so(small, monkeypatch):
    """Ctrl-C during training is not followed by samples of half a model."""
    pretrain = quickstart.pretrain

    def interrupted(*words, **options):
        import dataclasses

        result = pretrain(*words, **options)
        return dataclasses.replace(result, summary=dataclasses.replace(result.summary, stopped_early=True))

    monkeypatch.setattr(quickstart, "pretrain", interrupted)
    with pytest.raises(InputError, match="interrupted; run it again"):
        quickstart.main()


def test_what_is_named_exists():
    """The files to read and the presets are there; the commands are ones that minillm has."""
    from pathlib import Path

    from minillm.cli import COMMANDS

    root = Path(quickstart.__file__).parents[1]
    for path in quickstart.NEXT.splitlines()[-1].removeprefix("To read: ").split(", "):
        assert (root / path).is_file(), path
    commands = [line.split()[1] for line in quickstart.NEXT.splitlines() if "bin/minillm" in line]
    assert len(commands) == 5 and set(commands) <= set(COMMANDS)
