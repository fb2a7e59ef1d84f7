"""Every call that writes fails once, or for good, while a run saves: no state is lost, and the message names the file.

The faults: a full disk, an input/output error, a refused call, a write that takes only a part and says so, and two that
lie: of one only a part is on the disk, of the other other bytes are. Truth is the run that met no fault.
"""

import errno
import os
import re

import pytest
from safetensors import SafetensorError

from minillm.checkpoint import native
from minillm.checkpoint.files import WRITING
from minillm.errors import InputError
from minillm.training.progress import Progress

WRITES = os.O_WRONLY | os.O_RDWR
CALLS = ("open", "write", "fsync", "replace", "mkdir", "ftruncate", "save_file")
QUIET = ("short", "cut", "lying")  # a part is taken, and said so; only a part is on the disk; other bytes are
FAULTS = {"full": errno.ENOSPC, "broken": errno.EIO, "denied": errno.EACCES}


class Disk:
    """Counts the calls that write, and lets some of them fail.

    at: number of the call that fails first; None: none does. lasting: all later ones fail too.
    """

    def __init__(self, fault=None, at=None, lasting=False):
        self.fault, self.at, self.lasting = fault, at, lasting
        self.calls = 0
        self.hit = []

    def install(self, monkeypatch):
        """Stand between the program and the system from now on."""
        for name in CALLS:
            module = native if name == "save_file" else os
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name, real):
        def call(*words, **options):
            if name == "open" and not words[1] & WRITES:
                return real(*words, **options)
            if name == "write" and words[0] in (1, 2):  # standard output and error are no files of the run
                return real(*words, **options)
            number, self.calls = self.calls, self.calls + 1
            if self.at is None or not (number == self.at or (self.lasting and number > self.at)):
                return real(*words, **options)
            self.hit.append(name)
            return self._fail(name, real, words, options)

        return call

    def _fail(self, name, real, words, options):
        if self.fault in QUIET:
            return self._go_wrong(name, real, words, options)
        number = FAULTS[self.fault]
        if name == "save_file":  # the library's own writer: it leaves what it had written
            with open(words[1], "wb") as file:
                file.write(b"half")
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number))

    def _go_wrong(self, name, real, words, options):
        """Do the call otherwise than asked, and say that it went well."""
        if name == "write":
            if self.fault != "short" and "checkpoints" not in os.readlink(f"/proc/self/fd/{words[0]}"):
                return real(*words, **options)  # rows are not read back: a lie about them stays unseen
            content = bytes(words[1])
            if self.fault == "lying":
                content = content[:-1] + bytes([content[-1] ^ 1])
            else:
                content = content[: max(1, len(content) // 2)]
            done = real(words[0], content)
            return done if self.fault == "short" else len(words[1])
        result = real(*words, **options)
        if name == "save_file" and self.fault != "short":
            with open(words[1], "r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.truncate() if self.fault == "cut" else file.write(bytes([last[0] ^ 1]))
        return result


def install_after_first_step(disk, monkeypatch):
    def hook(trainer):
        if trainer.state.step == 1:
            disk.install(monkeypatch)

    return hook


def left(folder):
    """Return the bytes of all that a run leaves but its clock readings."""
    paths = [folder.metrics_path, *folder.checkpoints.rglob("*")]
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in paths if p.is_file() and "random" not in p.name}


@pytest.fixture(scope="module")
def calls():
    """How many calls that write a run of 8 steps makes after its first one; filled by the first test that asks."""
    return {}


def small(make_trainer, name, **given):
    settings = {"max_steps": 8, "ema_decay": 0.5, "progress": Progress(quiet=True)} | given
    return make_trainer(name, **settings)


def numbers(make_trainer, calls, sample):
    """Return the numbers of the calls that are to fail."""
    if not calls:
        with pytest.MonkeyPatch.context() as patch:
            disk, trainer = Disk(), small(make_trainer, "counted")
            trainer.after_step.append(install_after_first_step(disk, patch))
            trainer.fit()
        calls["all"] = disk.calls
    return range(0, calls["all"], sample)


def check_one_failing_call(make_trainer, calls, capsys, fault, sample):
    """A single call fails, each in turn: the run goes on, and ends with what it would have ended with."""
    through = small(make_trainer, "through")
    through.fit()
    expected = {name: content for name, content in left(through.folder).items() if not name.endswith("manifest.json")}
    capsys.readouterr()
    hit = set()
    for number in numbers(make_trainer, calls, sample):
        disk, trainer = Disk(fault, at=number), small(make_trainer, f"{fault}-{number}")
        with pytest.MonkeyPatch.context() as patch:
            trainer.after_step.append(install_after_first_step(disk, patch))
            trainer.fit()
        assert len(disk.hit) == 1
        hit |= set(disk.hit)
        told = capsys.readouterr().err
        found = left(trainer.folder)
        assert {name: found.get(name) for name in expected} == expected, f"call {number}, {disk.hit}"
        assert trainer.folder.load().step == 8 and not list(trainer.folder.path.rglob(f"{WRITING}*"))
        for line in told.splitlines():
            place = re.fullmatch(r"minillm: cannot write (\S+): .*; training goes on, .*", line)
            assert place and place[1].startswith(str(trainer.folder.path)), line
    return hit


@pytest.mark.parametrize("fault", ["full", "broken", "denied", *QUIET])
def test_one_failing_call_changes_nothing_in_the_end(make_trainer, calls, capsys, fault):
    """A sample of the calls; all of them in the slow test."""
    check_one_failing_call(make_trainer, calls, capsys, fault, sample=17)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "broken", "denied", *QUIET])
def test_every_single_failing_call_changes_nothing_in_the_end(make_trainer, calls, capsys, fault):
    hit = check_one_failing_call(make_trainer, calls, capsys, fault, sample=1)
    assert hit >= {"open", "write", "fsync", "replace", "mkdir", "save_file"}


def check_a_disk_that_fails_for_good(make_trainer, calls, capsys, fault, rule, sample):
    """From some call on nothing can be written: one line tells it, and the run goes on from what is safe later."""
    through = small(make_trainer, "through")
    through.fit()
    for number in numbers(make_trainer, calls, sample):
        name = f"{fault}-{rule}-{number}"
        disk, trainer = Disk(fault, at=number, lasting=True), small(make_trainer, name, on_failed_write=rule)
        with pytest.MonkeyPatch.context() as patch:
            trainer.after_step.append(install_after_first_step(disk, patch))
            try:
                trainer.fit()
            except InputError as error:
                assert re.match(rf"cannot write {trainer.folder.path}/\S+: ", str(error)) and "\n" not in str(error)
                safe = re.search(r"the checkpoint of step (\d+) is safe|no checkpoint was saved before", str(error))
                assert safe and (safe[1] is None or int(safe[1]) in trainer.folder.steps()), str(error)
                # one more may stand there: it has its name, and only the flush of that name was refused
                assert len([step for step in trainer.folder.steps() if step > int(safe[1] or 0)]) <= 1
            else:  # all was on the disk before: only a marker, a removal or a clock reading was refused
                assert trainer.folder.steps()[-1] == 8
        later = small(make_trainer, name)
        if later.folder.steps():
            later.resume()
        later.fit()
        assert later.folder.metrics_path.read_bytes() == through.folder.metrics_path.read_bytes(), number
        for file in ("model.safetensors", "optimiser.safetensors", "unaveraged.safetensors", "state.json"):
            one, two = (run.folder.folder_of(8) / file for run in (later, through))
            assert one.read_bytes() == two.read_bytes(), f"call {number}, {file}"
        capsys.readouterr()


@pytest.mark.parametrize("rule", ["go_on", "stop"])
@pytest.mark.parametrize("fault", ["full", "denied"])
def test_a_disk_that_fails_for_good(make_trainer, calls, capsys, fault, rule):
    check_a_disk_that_fails_for_good(make_trainer, calls, capsys, fault, rule, sample=19)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["go_on", "stop"])
@pytest.mark.parametrize("fault", ["full", "broken", "denied"])
def test_a_disk_that_fails_for_good_from_every_call_on(make_trainer, calls, capsys, fault, rule):
    check_a_disk_that_fails_for_good(make_trainer, calls, capsys, fault, rule, sample=1)
