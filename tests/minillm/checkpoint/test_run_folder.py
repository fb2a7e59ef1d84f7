"""The folder of a run: what may begin in it, which checkpoints stay, what the markers say after any accident."""

from dataclasses import dataclass

import pytest
import torch

from minillm.checkpoint import files
from minillm.checkpoint.manifest import renew_manifest
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import setting
from minillm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Of a model, as an older version saved it or as it is."""

    width: int = setting(4, "channels")
    sizes: tuple[int, ...] = setting((1, 2), "of layers")
    window: int | None = setting(None, "keys; none: all")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def save(folder, step, *, best=False, keep=1, config=None, **more):
    tensors = {"weight": torch.full((2,), float(step))}
    slots = {"step.weight": torch.tensor(float(step))}
    return folder.save(step, tensors, config or Config(), slots, {"step": step, "loss": None}, best, keep=keep, **more)


def test_what_is_saved_is_loaded(folder):
    place = save(folder, 250, best=True)
    assert place == folder.path / "checkpoints" / "step-000250"
    assert sorted(path.name for path in place.iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "optimiser.safetensors", "state.json",
    ]  # fmt: skip
    for which in ("latest", "best", 250):
        checkpoint = folder.load(which)
        assert (checkpoint.step, checkpoint.folder, checkpoint.state) == (250, place, {"step": 250, "loss": None})
        assert checkpoint.model_config == {"width": 4, "sizes": [1, 2]}
        assert checkpoint.model_tensors()["weight"].tolist() == [250.0, 250.0]
        assert checkpoint.optimiser_tensors()["step.weight"] == 250.0
    assert [(folder.checkpoints / m).read_text() for m in ("latest", "best")] == ["step-000250\n"] * 2


@pytest.mark.parametrize(
    "keep, best_at, kept",
    [(1, 1, [1, 6]), (1, 6, [6]), (1, None, [6]), (2, 3, [3, 5, 6]), (9, 2, [1, 2, 3, 4, 5, 6])],
)
def test_the_newest_and_the_best_stay(folder, keep, best_at, kept):
    for step in range(1, 7):
        save(folder, step, best=step == best_at, keep=keep)
    assert folder.steps() == kept
    assert folder.load().step == 6
    assert folder.load("best").step == (best_at or 6)  # Ctrl-C before the first evaluation: the newest will do


def test_a_checkpoint_before_the_first_step_needs_no_best_one(folder):
    save(folder, 0)
    assert folder.steps() == [0] and folder.load("best").step == 0


def test_steps_of_seven_digits_are_in_order_of_number(folder):
    for step in (999_999, 1_000_000, 10_000_000):
        save(folder, step, keep=9)
    assert folder.steps() == [999_999, 1_000_000, 10_000_000] and folder.load().step == 10_000_000


def test_saving_an_earlier_step_drops_the_later_ones(folder):
    for step in (2, 4, 6):
        save(folder, step, best=step == 4, keep=9)
    save(folder, 3, keep=9)
    assert folder.steps() == [2, 3] and folder.load().step == 3
    save(folder, 3, best=True)  # the same again
    assert folder.load("best").step == 3


@pytest.mark.parametrize("score, best", [(None, 3), ((-2.0, 0.0), 1)], ids=["none-judged", "judged"])
def test_a_course_that_was_left_is_not_the_best(folder, score, best):
    """Step 3 was the best; the run goes on from step 2, and its new step 3 is not."""
    save(folder, 1, best=score is not None, score=score, keep=9)
    save(folder, 2, score=score and (-2.0, -1.0), keep=9)
    save(folder, 3, best=True, score=(-1.0, 0.0), keep=9)
    save(folder, 3, score=(-4.0, 0.0))
    assert folder.load("best").step == best and folder.steps() == sorted({best, 3})


class TestAccidents:
    """The markers and folders as a crash or a person may have left them."""

    @pytest.mark.parametrize(
        "text", ["", "step-000009\n", "../../etc\n", "step-1\n", None], ids=["empty", "gone", "path", "short", "none"]
    )
    def test_a_latest_marker_that_leads_nowhere(self, folder, text):
        save(folder, 1, keep=9)
        save(folder, 2, keep=9)
        marker = folder.checkpoints / "latest"
        marker.unlink() if text is None else marker.write_text(text)
        assert folder.load().step == 2

    def test_marker_that_is_not_text(self, folder):
        save(folder, 1, best=True, keep=9)
        save(folder, 2, keep=9)
        (folder.checkpoints / "best").write_bytes(b"\xff\xfe")
        assert folder.load("best").step == 2

    def test_half_written_checkpoints_are_not_seen_and_go_with_the_next_one(self, folder):
        save(folder, 1)
        for name in (".writing-step-000002", ".removing-step-000000"):
            (folder.checkpoints / name).mkdir()
            (folder.checkpoints / name / "model.safetensors").write_bytes(b"half")
        assert folder.steps() == [1] and folder.load().step == 1
        save(folder, 2)
        assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["latest", "step-000002"]

    @pytest.mark.parametrize(
        "renames, latest, best",
        [(0, 2, 1), (1, 2, 1), (2, 2, 3), (3, 3, 3), (4, 3, 3)],
        ids=["none", "folder", "best", "latest", "one-removed"],
    )
    def test_the_process_may_end_after_each_rename(self, folder, monkeypatch, renames, latest, best):
        """What is found then is whole, and the next save mends the rest."""
        save(folder, 1, best=True)
        save(folder, 2)
        real, done = files.os.replace, []

        def ends(source, target):
            if len(done) == renames:
                raise SystemExit
            real(source, target)
            done.append(target)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(files.os, "replace", ends)
            save(folder, 3, best=True)
        for which, step in (("latest", latest), ("best", best)):
            assert folder.load(which).model_tensors()["weight"].tolist() == [step, step]
        save(folder, 4)
        assert folder.load().step == 4 and folder.steps() == [best, 4]

    @pytest.mark.parametrize("file", ["config.json", "state.json"])
    @pytest.mark.parametrize(
        "content, words",
        [(b"{", "is damaged"), (b"[1]", "no table in it"), (b"\xff", "is damaged"), (None, "is missing")],
    )
    def test_damaged_tables(self, folder, file, content, words):
        path = save(folder, 1) / file
        path.unlink() if content is None else path.write_bytes(content)
        renew_manifest(path.parent)
        with pytest.raises(InputError, match=f"{file} .*{words}|{file} {words}"):
            folder.load()


class TestCheckModel:
    """A checkpoint's model against the one that is asked for."""

    def test_equal_ones_pass(self, folder):
        save(folder, 1, config=Config(window=7))
        folder.load().check_model(Config(window=7))

    @pytest.mark.parametrize(
        "config, words",
        [
            (Config(width=8), "model.width is 4 in it, 8 was asked for"),
            (Config(window=3), "model.window is None in it, 3 was asked for"),
            (Config(sizes=(1,)), r"model.sizes is \(1, 2\) in it, \(1,\) was asked for"),
        ],
        ids=["number", "none", "list"],
    )
    def test_others_do_not(self, folder, config, words):
        save(folder, 1)
        with pytest.raises(InputError, match=f"config.json is of another architecture: {words}"):
            folder.load().check_model(config)

    def test_a_setting_that_it_does_not_know_is_refused_and_one_that_is_newer_is_default(self, folder):
        path = save(folder, 1) / "config.json"
        path.write_text('{"width": 4}')
        renew_manifest(path.parent)
        folder.load().check_model(Config())
        path.write_text('{"width": 4, "widht": 5}')
        renew_manifest(path.parent)
        with pytest.raises(InputError, match="unknown key model.widht in .*config.json; did you mean model.width"):
            folder.load().check_model(Config())


class TestCreate:
    """Where a run may begin."""

    def test_makes_parents_and_may_be_called_again_before_the_first_checkpoint(self, tmp_path):
        folder = RunFolder(tmp_path / "a" / "b")
        folder.create()
        folder.metrics_path.write_text("old")
        folder.create()
        assert folder.checkpoints.is_dir() and not folder.metrics_path.exists()

    def test_a_run_with_checkpoints_is_refused(self, folder):
        save(folder, 7)
        with pytest.raises(
            InputError, match="already holds a run, saved at step 7; choose another --out or use --resume"
        ):
            folder.create()
        assert folder.load().step == 7

    def test_overwriting_removes_the_run_and_nothing_else(self, folder):
        save(folder, 7, best=True)
        for path in (folder.metrics_path, folder.timing_path, folder.config_path, folder.path / "notes.txt"):
            path.touch()
        folder.create(overwrite=True)
        assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.toml", "notes.txt"]
        assert not list(folder.checkpoints.iterdir())

    def test_a_folder_with_other_things_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is not empty and not a run: .*thesis.tex.*; choose another --out"):
                RunFolder(tmp_path).create(overwrite)

    @pytest.mark.parametrize(
        "names, words",
        [
            (["config.toml", "metrics.csv", "thesis.txt"], "config.toml and no folder checkpoints"),
            (["config.toml", "metrics.csv"], "config.toml and no folder checkpoints"),
            (["checkpoints/", "config.toml", "thesis.txt"], "it has thesis.txt"),
            (["checkpoints/", "checkpoints/epoch-1.pt"], "it has checkpoints/epoch-1.pt"),
        ],
    )
    def test_a_folder_of_ones_own_with_a_name_of_ours_is_refused(self, tmp_path, names, words):
        for name in names:
            (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(InputError, match=f"is not empty and not a run: .*{words}"):
                RunFolder(tmp_path).create(overwrite)
        assert all((tmp_path / name).read_text() == "mine" for name in names if not name.endswith("/"))

    def test_what_an_interrupted_beginning_leaves_is_taken(self, folder):
        for name in ("config.toml", ".writing-corpus.json", "loss.png", "anchors.json", "checkpoints/latest"):
            (folder.path / name).touch()
        (folder.checkpoints / ".writing-step-000002").mkdir()
        folder.create()

    def test_an_empty_folder_is_taken_and_a_file_refused(self, tmp_path):
        RunFolder(tmp_path).create()
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="is a file, not a folder"):
            RunFolder(tmp_path / "file").create()
        with pytest.raises(InputError, match="cannot write .*: Not a directory"):
            RunFolder(tmp_path / "file" / "below").create()


def test_loading_what_is_no_run(tmp_path, folder):
    with pytest.raises(InputError, match="no run folder .*none"):
        RunFolder(tmp_path / "none").load()
    with pytest.raises(InputError, match="is not a run folder: it has neither config.toml nor checkpoints"):
        RunFolder(tmp_path).load()
    with pytest.raises(InputError, match="has no checkpoint yet; train it first"):
        folder.load()
    several = RunFolder(tmp_path / "several")  # as `finetune --seeds` leaves it
    for seed in (1, 2):
        RunFolder(several.path / f"seed-{seed}").create()
    several.config_path.write_text("seeds = 2\n")
    with pytest.raises(InputError, match="several holds 2 seeds of a run; give one of them, such as .*several/seed-1"):
        several.load()
    save(folder, 3)
    with pytest.raises(InputError, match="has no checkpoint of step 4; it has 3"):
        folder.load(4)


def test_making_the_object_touches_no_disk(tmp_path):
    RunFolder(tmp_path / "run")
    assert not (tmp_path / "run").exists()
