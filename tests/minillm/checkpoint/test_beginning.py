"""A new run takes the place of an old one when it is ready; whatever happens before leaves the old one as it was."""

import errno
import os

import pytest

from minillm.checkpoint.beginning import beginning, take_place
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError


def fill(folder, word):
    """Put into a folder what a run begins with."""
    folder.tokens_path.mkdir(parents=True, exist_ok=True)
    folder.tokenizer_path.mkdir(exist_ok=True)
    for path in (folder.config_path, folder.corpus_path, folder.tokenizer_path / "t.toml"):
        path.write_text(word)


@pytest.fixture
def old(tmp_path):
    """A run that was trained, with a note of its owner's."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    fill(folder, "old")
    (folder.tokens_path / "train.tokens").write_text("old")
    folder.folder_of(4).mkdir()
    for path in (folder.folder_of(4) / "model", folder.checkpoints / "latest", folder.metrics_path):
        path.write_text("old")
    (folder.path / "notes.txt").write_text("mine")
    return folder


def content(folder):
    paths = sorted(path for path in folder.path.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.path)): path.read_text() for path in paths}


NEW = {"config.toml": "new", "corpus.json": "new", "tokenizer/t.toml": "new", "tokens/train.tokens": "old"}


def test_a_ready_run_takes_the_place_and_leaves_what_is_not_a_runs(old):
    """Token shards that were there are kept: the run's own preparation decides whether they do."""
    with beginning(old, overwrite=True) as draft:
        fill(draft, "new")
        assert content(old)["config.toml"] == "old"
        take_place(old, draft)
        assert content(old) == NEW | {"notes.txt": "mine", "lock": f"{os.getpid()}\n"}
    assert content(old) == NEW | {"notes.txt": "mine"}


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_what_breaks_off_before_leaves_the_old_run(old, error):
    before = content(old)
    with pytest.raises(error), beginning(old, overwrite=True) as draft:
        fill(draft, "new")
        raise error
    assert content(old) == before


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_folder_that_was_not_there_goes_again(tmp_path, error):
    folder = RunFolder(tmp_path / "a" / "run")
    with pytest.raises(error), beginning(folder) as draft:
        fill(draft, "new")
        raise error
    assert not folder.path.exists()


def renamings(old, monkeypatch, fails, error, lasting=False):
    """Let one renaming fail, or all from it on; return whether there was one of that number."""
    real, done = os.replace, [0]

    def replace(source, target):
        done[0] += 1
        if done[0] - 1 == fails or (lasting and done[0] > fails):
            raise error
        real(source, target)

    with monkeypatch.context() as patch, beginning(old, overwrite=True) as draft:
        fill(draft, "new")
        patch.setattr(os, "replace", replace)
        take_place(old, draft)
    return done[0] > fails


@pytest.mark.parametrize("fails", range(12))
def test_a_renaming_that_fails_undoes_those_before_it(old, monkeypatch, fails):
    """Seven things leave, four arrive, and what left is named as gone."""
    before = content(old)
    with pytest.raises(InputError, match="cannot write .*run: Permission denied"):
        renamings(old, monkeypatch, fails, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert content(old) == before


def test_there_are_no_more_renamings(old, monkeypatch):
    assert not renamings(old, monkeypatch, 12, OSError())


@pytest.mark.parametrize("corpus", [True, False], ids=["same-names", "a-new-name"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SystemExit()], ids=["disk", "killed"])
@pytest.mark.parametrize("fails", range(12))
def test_the_next_beginning_puts_back_what_could_not_come_back(old, monkeypatch, capsys, fails, error, corpus):
    """From some renaming on none is done, as on a disk that went bad or in a process that is killed."""
    if not corpus:
        old.corpus_path.unlink()
    before, fails = content(old), min(fails, 11 - (not corpus))
    with pytest.raises((InputError, SystemExit)) as raised:
        renamings(old, monkeypatch, fails, error, lasting=True)
    if fails and isinstance(error, OSError):
        assert "the next beginning puts it back" in str(raised.value)
    with pytest.raises(InputError, match="already holds a run, saved at step 4"), beginning(old):
        pass
    assert content(old) == before
    assert capsys.readouterr().err.count("the run that stood here is back") == (fails > 0)


@pytest.mark.parametrize("fails", range(12))
def test_after_a_crash_at_any_renaming_a_run_can_begin(old, monkeypatch, fails):
    """In a folder of the run's own; with a file of somebody's in it, what has no checkpoint is not taken for a run."""
    (old.path / "notes.txt").unlink()
    with pytest.raises(SystemExit):
        renamings(old, monkeypatch, fails, SystemExit(), lasting=True)
    with beginning(old, overwrite=True) as draft:
        fill(draft, "new")
        take_place(old, draft)
    found = content(old)
    assert {name: found.get(name) for name in NEW if name[:6] != "tokens"} == {
        n: "new" for n in NEW if n[:6] != "tokens"
    }
    assert not old.steps() and not [name for name in found if name.startswith(".")]


def test_two_that_begin_in_one_place(tmp_path):
    """The second is refused, and takes nothing of the first one's away."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with beginning(first) as draft:
        fill(draft, "new")
        with pytest.raises(InputError, match="is being trained by process"), beginning(second):
            pass
        take_place(first, draft)
    assert content(first)["config.toml"] == "new"


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.toml", "metrics.csv"]])
def test_somebodys_own_folder_is_refused_untouched(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="is not empty and not a run"), beginning(RunFolder(tmp_path), overwrite=True):
        pass
    assert content(RunFolder(tmp_path)) == dict.fromkeys(names, "mine")
