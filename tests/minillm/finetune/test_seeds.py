"""Several seeds: each the run of its seed alone; their means, ensemble, resumption and replacement."""

import json
import signal

import numpy as np
import pytest
from killed import Killed
from leftovers import left_by, weights

from minillm.checkpoint.run_folder import RunFolder
from minillm.config import read_toml
from minillm.errors import InputError, Stopped
from minillm.finetune.predict import load_finetuned
from minillm.finetune.run import finetune
from minillm.finetune.seeds import finetune_seeds, resume_seeds
from minillm.finetune.table import text_table
from minillm.training.records import read_columns

pytestmark = pytest.mark.usefixtures("undrawn")


TEXTS = ["good warm day", "the dull sea", "cold and bad", "fine"]


def test_seeds_and_their_ensemble(settings, tmp_path):
    """Each is the run of its seed alone; means and deviations are NumPy's; the ensemble is the mean probability."""
    short = {"train__max_steps": 2, "train__eval_every": 2}
    result = finetune_seeds(settings(seeds=2, train__seed=3, against_random=True, **short), tmp_path / "both")
    finetune(settings(train__seed=4, **short), tmp_path / "alone")
    assert weights(tmp_path / "both/seed-4", 2) == weights(tmp_path / "alone", 2)
    table = result.json()
    each = [table["seeds"][seed]["test"]["loss"] for seed in ("3", "4")]
    assert table["test"]["loss"] == pytest.approx(np.mean(each))
    assert table["deviation"]["this model"]["test"]["loss"] == pytest.approx(np.std(each, ddof=1))
    assert table["deviation"].keys() == {"this model", "from random weights"}
    assert table["baselines"].keys() == {"majority", "tfidf", "from random weights"}
    assert result.contenders[0].note == "mean probability of 2"
    members = [r.contenders[0].splits["test"].probabilities() for r in result.results.values()]
    joined = result.contenders[0].splits["test"].probabilities()
    np.testing.assert_allclose(joined, np.mean(members, axis=0), rtol=1e-5)
    together, alone = (load_finetuned(tmp_path / "both"), load_finetuned(tmp_path / "both/seed-3"))
    rows = text_table(TEXTS)
    said = together.predictions(rows, together.columns(rows)).probabilities()
    parts = [load_finetuned(tmp_path / f"both/seed-{n}") for n in (3, 4)]
    expected = np.mean([p.predictions(rows, p.columns(rows)).probabilities() for p in parts], axis=0)
    np.testing.assert_allclose(said, expected, rtol=1e-5)
    assert len(alone.models) == 1
    assert json.loads((tmp_path / "both/report/report.json").read_text())["seeds"]["test"]["loss"]["mean"] is not None


def test_numbers_of_seeds_are_averaged_as_numbers(settings, tables, tmp_path):
    """The ensemble's number is their mean, and the report does not speak of probabilities."""
    paths = {}
    for name, path in tables.items():
        paths[f"data__{name}"] = str(tmp_path / path.name)
        rows = path.read_text().replace(",good", ",1.5").replace(",bad", ",-1")
        (tmp_path / path.name).write_text(rows)
    result = finetune_seeds(
        settings(seeds=2, task__name="regression", train__max_steps=2, train__eval_every=2, **paths), tmp_path / "both"
    )
    members = [r.contenders[0].splits["test"].logits for r in result.results.values()]
    np.testing.assert_allclose(result.contenders[0].splits["test"].logits, np.mean(members, axis=0), rtol=1e-5)
    assert result.contenders[0].note == "mean number of 2"


def test_seeds_resume_where_they_stopped(settings, tmp_path, kill_at, capsys):
    """Killed in the second seed: the first is judged again, the second goes on; all as if nothing had happened.

    Until then both answer, the second as its last checkpoint has it, which is said, and no more."""
    given = {"seeds": 2, "train__checkpoint_every": 2}
    finetune_seeds(settings(**given), tmp_path / "through")
    finetune(settings(train__checkpoint_every=2), tmp_path / "again/seed-0")
    (tmp_path / "again/config.toml").write_text((tmp_path / "through/config.toml").read_text())
    kill_at(5)
    with pytest.raises(Killed):
        finetune(settings(train__checkpoint_every=2, train__seed=1), tmp_path / "again/seed-1")
    kill_at(None)
    capsys.readouterr()
    assert len(load_finetuned(tmp_path / "again").models) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "the seeds of" in told and "are not all done, and 2 answer as they are" in told
    resume_seeds(tmp_path / "again", {})
    capsys.readouterr()
    load_finetuned(tmp_path / "again")
    assert capsys.readouterr().err == ""
    for seed in ("seed-0", "seed-1"):
        assert left_by(tmp_path / "again" / seed) == left_by(tmp_path / "through" / seed)
    first, second = (json.loads((tmp_path / n / "report/report.json").read_text()) for n in ("again", "through"))
    assert first | {"run": ""} == second | {"run": ""}


def test_a_setting_that_is_changed_is_changed_for_all_seeds(settings, tmp_path, kill_at):
    """Killed in the first of three, two of which had begun: to resume without a word does what was said before."""
    finetune_seeds(settings(seeds=2, train__max_steps=2), tmp_path / "out")
    config = tmp_path / "out/config.toml"
    config.write_text(config.read_text().replace("seeds = 2", "seeds = 3"))
    kill_at(3)
    with pytest.raises(Killed):
        resume_seeds(tmp_path / "out", {"train": {"max_steps": 4}})
    kill_at(None)
    resume_seeds(tmp_path / "out", {})
    for seed in range(3):
        assert read_columns(tmp_path / f"out/seed-{seed}/metrics.csv")["step"][-1] == 4
    with RunFolder(tmp_path / "out/seed-1").held(), pytest.raises(InputError):
        resume_seeds(tmp_path / "out", {"train": {"max_steps": 6}})
    for place in ("", "seed-0/", "seed-1/", "seed-2/"):
        assert read_toml(tmp_path / f"out/{place}config.toml")["train"]["max_steps"] == 4


def test_resumed_seeds_that_do_not_end_have_no_temperature_of_earlier_checkpoints(settings, tmp_path, kill_at):
    """A change that is refused leaves it."""
    finetune_seeds(settings(seeds=2, train__max_steps=2), tmp_path / "out")
    with pytest.raises(InputError, match="cannot change"):
        resume_seeds(tmp_path / "out", {"train": {"seed": 3}})
    assert (tmp_path / "out/calibration.json").exists()
    kill_at(3)
    with pytest.raises(Killed):
        resume_seeds(tmp_path / "out", {"train": {"max_steps": 4}})
    assert not (tmp_path / "out/calibration.json").exists()
    kill_at(None)
    resume_seeds(tmp_path / "out", {})
    assert (tmp_path / "out/calibration.json").exists()


@pytest.mark.parametrize("where", ["seed-0", "seed-1", "random"])
def test_seeds_that_are_stopped_end_with_the_status_of_the_signal(settings, tmp_path, terminate_in, capsys, where):
    """In the first seed, in a later one, or in a twin; all then goes on."""
    given = {"seeds": 2, "train__max_steps": 2, "against_random": where == "random"}
    terminate_in(where)
    with pytest.raises(Stopped) as raised:
        finetune_seeds(settings(**given), tmp_path / "out")
    assert raised.value.status == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith(f"go on with: minillm finetune --resume {tmp_path / 'out'}\n")
    terminate_in(None)
    assert len(resume_seeds(tmp_path / "out", {}).results) == 2


def test_seeds_that_are_killed_in_the_first_go_on(settings, tmp_path, kill_at):
    """The folder knows of all of them from the first step on."""
    kill_at(3)
    with pytest.raises(Killed):
        finetune_seeds(settings(seeds=2, train__checkpoint_every=2), tmp_path / "out")
    kill_at(None)
    assert resume_seeds(tmp_path / "out", {}).results.keys() == {0, 1}


def test_overwriting_seeds_takes_no_old_run_along(settings, tmp_path):
    """And a new run that does not do, found before its model is there or after, leaves the old one alone."""
    finetune_seeds(settings(seeds=2, train__max_steps=2), tmp_path / "out")
    with pytest.raises(InputError, match="already holds 2 seeds"):
        finetune_seeds(settings(seeds=2), tmp_path / "out")
    with pytest.raises(InputError, match="no column grade"):
        finetune_seeds(settings(seeds=2, data__label_column="grade"), tmp_path / "out", overwrite=True)
    for bad in ({"train__seed": 0}, {"train__seed": 5}):
        with pytest.raises(InputError, match="train.best_by is bleu"):
            finetune_seeds(settings(seeds=2, train__best_by="bleu", **bad), tmp_path / "out", overwrite=True)
    left = {path.name: RunFolder(path).steps() for path in (tmp_path / "out").glob("seed-*")}
    assert left == {"seed-0": [2], "seed-1": [2]} and (tmp_path / "out/report/report.json").is_file()
    finetune_seeds(settings(seeds=2, train__seed=5, train__max_steps=2), tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("seed-*")) == ["seed-5", "seed-6"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no seeds: it has letter.txt"):
        finetune_seeds(settings(seeds=2), tmp_path / "other", overwrite=True)


def test_overwriting_seeds_keeps_what_they_begin_with(settings, tmp_path):
    """A seed would begin with the new run that stands where the old one was."""
    finetune_seeds(settings(seeds=2, train__max_steps=1), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = settings(seeds=2, train__max_steps=1, init=str(tmp_path / "out/../out/seed-1"))
    with pytest.raises(InputError, match="every seed begins with .*seed-1, and --overwrite replaces"):
        finetune_seeds(again, tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("held", ["seed-0", "seed-1"])
def test_overwriting_seeds_touches_none_in_which_somebody_trains(settings, tmp_path, held):
    """Be it the first, which a new run replaces, or a later one, which goes."""
    finetune_seeds(settings(seeds=2, train__max_steps=2), tmp_path / "out")
    with RunFolder(tmp_path / "out" / held).held():
        with pytest.raises(InputError, match=f"{held} is being trained by process"):
            finetune_seeds(settings(seeds=2, train__max_steps=4), tmp_path / "out", overwrite=True)
    assert [RunFolder(tmp_path / "out" / name).steps() for name in ("seed-0", "seed-1")] == [[2], [2]]
