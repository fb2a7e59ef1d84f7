"""Fine-tuning runs that were interrupted, changed or have a twin go on bit for bit to what they would have been."""

import signal

import pytest
from killed import Killed
from leftovers import left_by, weights

from minillm import pretrain_config
from minillm.config import read_toml
from minillm.errors import InputError
from minillm.finetune.predict import load_finetuned
from minillm.finetune.run import finetune, resume
from minillm.training.records import read_columns

pytestmark = pytest.mark.usefixtures("undrawn")


RESUMED = [
    pytest.param({}, 3, id="plain"),
    pytest.param({"train__micro_batch_size": 2, "task__class_weights": "balanced"}, 5, id="micro-batches"),
    pytest.param({"adapter__kind": "adalora", "adapter__rank": 3, "adapter__target_rank": 1}, 6, id="adalora"),
    pytest.param({"scope__unfreeze_every": 2, "scope__layer_decay": 0.5}, 3, id="unfreezing"),
    pytest.param({"augmentation__share": 0.9, "augmentation__swap": 0.5}, 7, id="augmentation"),
    pytest.param({"train__ema_decay": 0.9}, 6, id="ema"),
    pytest.param({"regulariser__r_drop": 1.0, "regulariser__adversarial": 0.5}, 3, id="regularised"),
]


@pytest.mark.parametrize("given, killed", RESUMED)
def test_resumed_equals_never_stopped(settings, tmp_path, kill_at, given, killed):
    """Bit for bit: weights, optimiser, counters, metrics, temperature and report."""
    given = {"train__checkpoint_every": 2, "head__dropout": 0.3, "backbone__dropout": 0.2} | given
    finetune(settings(**given), tmp_path / "through")
    kill_at(killed)
    with pytest.raises(Killed):
        finetune(settings(**given), tmp_path / "again")
    kill_at(None)
    resume(tmp_path / "again", {"train": {"log_every": 1}})
    assert left_by(tmp_path / "again") == left_by(tmp_path / "through")


def test_a_resumed_run_that_does_not_end_has_no_temperature_of_an_earlier_best_checkpoint(
    settings, tmp_path, kill_at, capsys
):
    """Who asks it meanwhile is told, once it has none."""
    finetune(settings(), tmp_path / "run")
    load_finetuned(tmp_path / "run")
    assert "temperature" not in capsys.readouterr().err
    assert (tmp_path / "run/calibration.json").exists()
    kill_at(10)
    with pytest.raises(Killed):
        resume(tmp_path / "run", {"train": {"max_steps": 12}})
    assert not (tmp_path / "run/calibration.json").exists()
    assert load_finetuned(tmp_path / "run").calibration == {}
    assert "at temperature 1; one is fitted when the run ends: minillm finetune --resume" in capsys.readouterr().err


def test_a_twin_is_the_run_from_random_weights(settings, tmp_path):
    """Bit for bit that of the same settings with --random."""
    short = {"train__max_steps": 2, "train__eval_every": 2}
    finetune(settings(against_random=True, **short), tmp_path / "run")
    finetune(settings(random=True, **short), tmp_path / "alone")
    assert weights(tmp_path / "run/random", 2) == weights(tmp_path / "alone", 2) != weights(tmp_path / "run", 2)


def test_a_twin_that_is_stopped_stops_its_run(settings, tmp_path, terminate_in, capsys):
    """The signal is said as of any run, and the run goes on to what it would have been."""
    given = {"train__max_steps": 2, "against_random": True}
    terminate_in("random")
    stopped = finetune(settings(**given), tmp_path / "run")
    assert stopped.summary.signal == signal.SIGTERM and stopped.contenders == () and stopped.report is None
    assert capsys.readouterr().err.endswith(f"go on with: minillm finetune --resume {tmp_path / 'run'}\n")
    terminate_in(None)
    assert resume(tmp_path / "run", {}).contenders[-1].name == "from random weights"


def test_a_twin_is_resumed_with_what_its_run_is_resumed_with(settings, tmp_path):
    """All else alike: the twin has as many steps and rows, and a setting that goes back to none is none again."""
    given = {"train__max_steps": 2, "train__patience": 9, "against_random": True}
    finetune(settings(**given), tmp_path / "run")
    resume(tmp_path / "run", {"train": {"max_steps": 6, "eval_every": 3, "patience": None}})
    for folder in (tmp_path / "run", tmp_path / "run/random"):
        columns = read_columns(folder / "metrics.csv")
        judged = [s for s, v in zip(columns["step"], columns["valid_loss"], strict=True) if v is not None]
        assert (columns["step"][-1], judged) == (6, [2, 3, 6]), folder
        assert "patience" not in read_toml(folder / "config.toml")["train"]


def test_zero_means_the_same_in_a_resumed_run_as_in_a_new_one(settings, tmp_path):
    """As many steps as the epochs take, evaluations by the epoch, a checkpoint after each; the warm-up stays."""
    given = {"train__epochs": 2.0, "train__evals_per_epoch": 1.0, "optim__warmup_fraction": 0.5}
    zeros = {"max_steps": 0, "eval_every": 0, "checkpoint_every": 0}
    finetune(settings(**given, train__max_steps=4), tmp_path / "run")
    assert resume(tmp_path / "run", {"train": zeros}).summary.steps == 12  # 48 rows, 8 a step
    kept = read_toml(tmp_path / "run/config.toml")
    assert [kept["train"][name] for name in zeros] == [12, 6, 6] and kept["optim"]["warmup_steps"] == 2


def test_changed_tables_are_refused(settings, tables, tmp_path, kill_at):
    """A resumed run learns from what it was begun with."""
    copy = tmp_path / "train.csv"
    copy.write_bytes(tables["train"].read_bytes())
    kill_at(6)
    with pytest.raises(Killed):
        finetune(settings(data__train=str(copy)), tmp_path / "run")
    kill_at(None)
    copy.write_text(copy.read_text() + "good,good\n")
    with pytest.raises(InputError, match="train.csv is not what .* was begun with"):
        resume(tmp_path / "run", {})
    with pytest.raises(InputError, match="optim.learning_rate cannot change"):
        resume(tmp_path / "run", {"optim": {"learning_rate": 1.0}})


def test_a_rehearsal_of_a_resume_leaves_the_length_of_the_run(settings, tmp_path, monkeypatch):
    """Step 2 is reached, 1 more is rehearsed, and config.toml keeps the four that were asked for."""
    finetune(settings(train__max_steps=2), tmp_path / "run")
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setattr(pretrain_config, "QUICK_STEPS", 1)
    assert resume(tmp_path / "run", {"train": {"max_steps": 4}}).summary.steps == 3
    monkeypatch.delenv("QUICK")
    assert resume(tmp_path / "run", {}).summary.steps == 4
