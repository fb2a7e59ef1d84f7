"""One trainer a run folder: the second is refused with the first one's number; its death sets the folder free."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from minillm.checkpoint import lock
from minillm.checkpoint.lock import holder, locked
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError

HOLDS = """
import sys, time
from pathlib import Path
from minillm.checkpoint.lock import locked
with locked(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_by_number(tmp_path, other):
    folder = RunFolder(tmp_path)
    words = f"{tmp_path} is being trained by process {other.pid}; wait for it to end, or stop it with kill {other.pid}"
    with pytest.raises(InputError, match=words), folder.held():
        pass
    assert folder.trainer() == other.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_its_death_sets_the_folder_free(tmp_path, other, number):
    other.send_signal(number)
    other.wait()
    assert holder(tmp_path / "lock") is None
    with locked(tmp_path / "lock", "the run"):
        assert holder(tmp_path / "lock") == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_look_changes_nothing(tmp_path):
    assert holder(tmp_path / "lock") is None and not list(tmp_path.iterdir())
    (tmp_path / "lock").write_text("12345\n")  # of one who was killed
    (tmp_path / "lock").chmod(0o444)
    assert holder(tmp_path / "lock") is None and (tmp_path / "lock").read_text() == "12345\n"


def test_a_second_trainer_in_the_same_process_is_refused_too(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.held(), folder.held():  # of one object they may lie in each other
        with pytest.raises(InputError, match=f"being trained by process {os.getpid()}"), RunFolder(tmp_path).held():
            pass
    with RunFolder(tmp_path).held():
        pass


def test_of_many_that_come_at_once_one_at_a_time_gets_in(tmp_path, monkeypatch):
    """Threads stand for processes: a lock belongs to an opened file. The file is made and removed all the time."""
    monkeypatch.setattr(lock, "PAUSE", 0.001)
    inside, most, entered = [0], [0], [0]

    def come():
        for _ in range(40):
            try:
                with locked(tmp_path / "lock", "the run"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    inside[0] -= 1
            except InputError:
                pass

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and entered[0] >= 40


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot write .*lock: No such file or directory"):
        with locked(tmp_path / "none" / "lock", "the run"):
            pass


def test_without_locks_in_the_system_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path / "lock", "the run"), locked(tmp_path / "lock", "the run"):
        assert holder(tmp_path / "lock") is None


def test_who_waits_gets_in_when_the_other_has_gone(tmp_path, other):
    told = []

    def wait(number):
        told.append(number)
        other.kill()

    with locked(tmp_path / "lock", "the run", wait=wait) as held:
        assert held and holder(tmp_path / "lock") == os.getpid()
    assert told == [other.pid]
