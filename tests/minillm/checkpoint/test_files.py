"""Files and folders appear whole or not at all, whatever call fails."""

import errno
import os

import pytest
from safetensors import SafetensorError

from minillm.checkpoint import files
from minillm.errors import InputError


def refuse(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "module, at, content",
    [(os, "open", "old"), (os, "write", "old"), (os, "fsync", "old"), (os, "replace", "old")]
    + [(files, "sync_folder", "new")],
    ids=["open", "write", "fsync", "replace", "flush-of-the-folder"],
)
def test_a_file_that_cannot_be_written_keeps_its_old_content(tmp_path, monkeypatch, module, at, content):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(module, at, refuse)
    words = "cannot write .*file.txt: No space left on device; free some space; all is safe$"
    with pytest.raises(InputError, match=words):
        files.write_text(path, "new", safe="all is safe")
    monkeypatch.undo()
    assert path.read_text() == content and names(tmp_path) == ["file.txt"]


@pytest.fixture
def done(monkeypatch):
    """The flushes, by the number of what was flushed, and the renamings ("renamed") as they come."""
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), calls.append(os.fstat(descriptor).st_ino)))
    monkeypatch.setattr(os, "replace", lambda *paths: (replace(*paths), calls.append("renamed")))
    return calls


def numbers(*paths) -> list[int]:
    return [path.stat().st_ino for path in paths]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, done):
    """Else a crash between the two leaves the name of a file that is empty."""
    files.write_text(tmp_path / "file", "new")
    assert done == [*numbers(tmp_path / "file"), "renamed", *numbers(tmp_path)]


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, done):
    """Its files, and the names of them: those in a folder inside too."""
    with files.new_folder(tmp_path / "folder") as draft:
        (draft / "inside").mkdir()
        for name in ("file", "inside/deep"):
            (draft / name).write_text(name)
    folder, at = tmp_path / "folder", done.index("renamed")
    assert sorted(done[:at]) == sorted(numbers(folder, *folder.rglob("*"))) and len(done[:at]) == 4
    assert done[at + 1 :] == numbers(tmp_path)


@pytest.mark.parametrize("on_disk", [b"ne", b"nex", b"new!", b""], ids=["cut", "other", "more", "nothing"])
def test_a_disk_that_has_something_else_is_found_out(tmp_path, monkeypatch, on_disk):
    """It says that it took all; that is read back, and the old content stays."""
    files.write_text(tmp_path / "file", "old")
    write = files.write_all
    monkeypatch.setattr(files, "write_all", lambda descriptor, _: write(descriptor, on_disk))
    with pytest.raises(InputError, match="file: what is on the disk differs from what was written"):
        files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_text_is_utf8_with_line_ends_as_they_are(tmp_path):
    files.write_text(tmp_path / "file", "ä\r\nb\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\r\nb\n"


def test_a_new_folder_appears_with_its_files_and_takes_the_place_of_an_old_one(tmp_path):
    for content in ("one", "two"):
        with files.new_folder(tmp_path / "folder") as draft:
            (draft / f"{content}.txt").write_text(content)
            assert not (tmp_path / "folder" / f"{content}.txt").exists()
        assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == [f"{content}.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_new_folder_whose_filling_breaks_off_is_gone(tmp_path, error):
    with files.new_folder(tmp_path / "folder") as draft:
        (draft / "old").touch()
    with pytest.raises(error), files.new_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
        raise error
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


@pytest.mark.parametrize("at", ["fsync", "replace", "mkdir"])
def test_a_new_folder_that_cannot_be_written_is_gone(tmp_path, monkeypatch, at):
    with pytest.raises(InputError, match="cannot write .*folder: No space left on device"):
        if at == "mkdir":
            monkeypatch.setattr(os, at, refuse)
        with files.new_folder(tmp_path / "folder") as draft:
            (draft / "file").touch()
            monkeypatch.setattr(os, at, refuse)
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_leftovers_of_a_crash_are_removed_and_nothing_else(tmp_path):
    for name in (".writing-step-000004", ".removing-step-000002", "step-000001", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".writing-latest").touch()
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "step-000001"]


def test_a_folder_is_removed_also_where_an_earlier_removal_broke_off(tmp_path):
    for name in ("step", ".removing-step"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    files.remove_folder(tmp_path / "step")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; make it writable or choose another folder"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("bare"), "bare"),
        (SafetensorError("I/O error: blah (os error 28)"), "No space left on device; free some space"),
        (SafetensorError("header too large"), "header too large"),
    ],
    ids=["access", "io", "bare", "safetensors-full", "safetensors"],
)
def test_reasons(error, words):
    assert files.reason(error) == words


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyError), files.explained(tmp_path):
        raise KeyError
