"""Bytes flipped, cut, added or gone in every file of a checkpoint: found, named, never loaded silently."""

import dataclasses
import json
import random
import shutil
import warnings

import pytest
import torch

from minillm.checkpoint import manifest
from minillm.checkpoint.manifest import MANIFEST, Damaged, check_files, read_manifest, renew_manifest, write_manifest
from minillm.checkpoint.run_folder import RunFolder
from minillm.checkpoint.sharded import write_shards
from minillm.config import setting
from minillm.errors import InputError
from minillm.training.random_state import random_tensors

CONFIG = dataclasses.make_dataclass("Config", [("width", int, setting(4, "channels"))], frozen=True)()
FILES = (
    "model.safetensors",
    "unaveraged.safetensors",
    "optimiser.safetensors",
    "random.safetensors",
    "config.json",
    "state.json",
    MANIFEST,
)
SHARDS = ("optimiser.00001.safetensors", "optimiser.00002.safetensors")
SAMPLES = 24  # places a file; the first and the last byte are always among them


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with two checkpoints that have every kind of file."""
    folder = RunFolder(tmp_path_factory.mktemp("saved") / "run")
    folder.create()
    for step in (2, 4):
        tensors = {"weight": torch.randn(9, 5), "bias": torch.randn(5)}
        state = {"step": step, "loss": 1.5}
        slots = {"exp_avg.weight": torch.randn(9, 5)}
        random_states = random_tensors(torch.device("cpu"))
        folder.save(step, tensors, CONFIG, slots, state, True, unaveraged=tensors, random=random_states, keep=9)
    return folder


@pytest.fixture(scope="module")
def saved_in_shards(tmp_path_factory):
    """A run with two checkpoints whose optimiser lies in two files, as two processes write it."""
    folder = RunFolder(tmp_path_factory.mktemp("saved") / "run")
    folder.create()
    for step in (2, 4):
        place, other = folder.shards_of(step), tmp_path_factory.mktemp("other")
        place.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process is alone
            write_shards(place, {"exp_avg.weight": torch.randn(9, 5)})
            write_shards(other, {"exp_avg.bias": torch.randn(5)})
        (path,) = other.iterdir()
        path.rename(place / path.name.replace("shard-00001", "shard-00002"))
        tensors = {"weight": torch.randn(9, 5), "bias": torch.randn(5)}
        folder.save(step, tensors, CONFIG, {}, {"step": step}, True, keep=9, shards=place)
    return folder


@pytest.fixture
def sharded(saved_in_shards, tmp_path):
    """A copy of it to damage."""
    shutil.copytree(saved_in_shards.path, tmp_path / "sharded")
    return RunFolder(tmp_path / "sharded")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to damage."""
    shutil.copytree(saved.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def damages(content):
    """Yield (what was done, damaged content) for a sample of places."""
    chance = random.Random(len(content))
    places = {0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(SAMPLES))}
    for place in sorted(places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        yield f"a bit of byte {place} flipped", bytes(flipped)
    for size in sorted({0, 1, len(content) - 1, *(chance.randrange(len(content)) for _ in range(SAMPLES // 4))}):
        yield f"cut to {size} bytes", content[:size]
    yield "a byte more", content + b"\n"


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_named(folder, name, capsys):
    check_every_damage(folder, name, capsys)


@pytest.mark.parametrize("name", SHARDS)
def test_every_damage_of_a_shard_is_named(sharded, name, capsys):
    check_every_damage(sharded, name, capsys)


def check_every_damage(folder, name, capsys):
    """Asked for by its number: an error with the file's name. Asked for as the latest: the other one, said aloud."""
    path = folder.folder_of(4) / name
    content = path.read_bytes()
    for what, damaged in damages(content):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="use another checkpoint") as error:
            folder.load(4)
        assert str(folder.folder_of(4)) in str(error.value) and "\n" not in str(error.value), what
        if name != MANIFEST:
            assert str(path) in str(error.value), what
        capsys.readouterr()
        assert folder.load().step == folder.load("best").step == 2, what
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2 and str(folder.folder_of(4)) in told[0], what
        assert told[0].endswith("; the checkpoint of step 2 takes its place"), what
    path.write_bytes(content)
    assert folder.load().step == 4 and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone(folder, name, capsys):
    (folder.folder_of(4) / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing; .*use another checkpoint"):
        folder.load(4)
    assert folder.load().step == 2 and f"{name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_is_gone(sharded, name, capsys):
    (sharded.folder_of(4) / name).unlink()
    assert sharded.load().step == 2 and f"{name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "sharded"], ids=["beside-a-whole-one", "beside-others"])
def test_a_shard_that_no_manifest_lists_is_not_read(request, sharded, kind, capsys):
    """It is sound in itself, and of another course; it would be read in place of the optimiser, or with it."""
    run = request.getfixturevalue(kind)
    stray = run.folder_of(4) / "optimiser.00003.safetensors"
    shutil.copy(sharded.folder_of(2) / SHARDS[0], stray)
    with pytest.raises(InputError, match=f"{stray} is no file of this checkpoint: {MANIFEST} does not list it"):
        run.load(4)
    assert run.load().step == 2 and "takes its place" in capsys.readouterr().err
    assert run.load(to_use=True).step == 4, "using the model reads no optimiser"


def test_the_optimiser_may_be_damaged_for_who_only_uses_the_model(folder, capsys):
    """It is not read then; who goes on with the training is told."""
    path = folder.folder_of(4) / "optimiser.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert folder.load(to_use=True).step == 4 and capsys.readouterr().err == ""
    assert folder.load().step == 2


def test_no_checkpoint_is_sound(folder):
    for step in (2, 4):
        (folder.folder_of(step) / "state.json").write_text("{}")
    with pytest.raises(
        InputError, match="step-000004/state.json is damaged.*step-000002/state.json is damaged.*no other"
    ):
        folder.load()


def test_the_next_save_goes_on_from_the_sound_one_and_clears_the_damaged_one(folder, capsys):
    """A run that resumed at step 2 takes steps 3 and 4 again: what stands at 4 is of the course that was left."""
    (folder.folder_of(4) / "state.json").write_text("{}")
    found = folder.load()
    folder.save(3, found.model_tensors(), CONFIG, found.optimiser_tensors(), found.state, False, keep=9)
    assert folder.steps() == [2, 3] and folder.load().step == 3


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\nb", "C:x"], ids=repr
)
def test_a_manifest_cannot_lead_out_of_its_folder(folder, name):
    """One that was made by somebody else, sound in itself, with a name that is a path."""
    place = folder.folder_of(4)
    table = json.loads((place / MANIFEST).read_text())
    entry = table["files"].pop("state.json")
    forged = {"format": 1, "facts": table["facts"], "files": table["files"] | {name: entry}}
    text = json.dumps(forged | {"sha256": manifest._digest(forged)}, indent=1) + "\n"
    (place / MANIFEST).write_text(text)
    with pytest.raises(Damaged, match="is not a plain name of a file"):
        read_manifest(place)


@pytest.mark.parametrize("fact, value", [("step", 3), ("score", [-0.5]), ("tokenizer", "0" * 64)])
def test_a_changed_fact_is_damage(folder, fact, value):
    """No file's digest tells of it, but the manifest's own: a score of another checkpoint would make this one best."""
    path = folder.folder_of(4) / MANIFEST
    table = json.loads(path.read_text())
    assert table["facts"][fact] != value
    table["facts"][fact] = value
    path.write_text(json.dumps(table, indent=1) + "\n")
    with pytest.raises(InputError, match=f"{MANIFEST} is damaged .its own SHA-256 does not fit.; use another"):
        folder.load(4)


def test_a_manifest_of_a_later_format_says_so(folder):
    place = folder.folder_of(4)
    table = json.loads((place / MANIFEST).read_text()) | {"format": 2}
    del table["sha256"]
    (place / MANIFEST).write_text(json.dumps(table | {"sha256": manifest._digest(table)}, indent=1) + "\n")
    with pytest.raises(InputError, match="is of format 2, this version reads 1"):
        folder.load()


def test_whoever_changes_a_file_on_purpose_renews_the_manifest(folder):
    path = folder.folder_of(4) / "config.json"
    path.write_text('{"width": 8}')
    renew_manifest(path.parent)
    assert folder.load(4).model_config == {"width": 8}


def test_a_manifest_lists_every_file_with_its_size_and_digest(tmp_path):
    """The digests are those of sha256sum (FIPS 180-4): of nothing, and of "abc"."""
    (tmp_path / "empty").touch()
    (tmp_path / "abc").write_text("abc")
    write_manifest(tmp_path, {"step": 7})
    found = read_manifest(tmp_path)
    assert found["facts"] == {"step": 7} and found["files"] == {
        "abc": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        "empty": {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    }
    check_files(tmp_path, found["files"])
