"""Fine-tuning runs repeat and resume bit for bit, and nothing of the test table reaches a choice."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from minillm import pretrain_config
from minillm.checkpoint.native import read_tensors
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, read_toml
from minillm.errors import InputError, Stopped
from minillm.finetune import report, run
from minillm.finetune.adapters.adalora import WithOrthogonality
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.predict import load_finetuned
from minillm.finetune.regularisers.adversarial import Adversarial
from minillm.finetune.regularisers.r_drop import RDrop
from minillm.finetune.run import finetune, resume
from minillm.finetune.seeds import finetune_seeds, resume_seeds
from minillm.finetune.source import open_source
from minillm.finetune.table import text_table
from minillm.training.distributed import Processes
from minillm.training.records import read_columns

TEXTS = ["good warm day", "the dull sea", "cold and bad", "fine"]


class Killed(BaseException):
    """Stands for a process that is gone at once: nothing handles it."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """No PNGs: they take three times as long as all else of such a run."""
    monkeypatch.setattr(run, "draw_plots", lambda folder: [])
    monkeypatch.setattr(report, "_plots", lambda *_: {})


@pytest.fixture
def kill_at(monkeypatch):
    """Return a function: step -> runs die right after it, until it is called with None."""
    plain = run._trainer

    def arm(step):
        def make(*parts):
            trainer = plain(*parts)
            trainer.after_step.append(die)
            return trainer

        def die(trainer):
            if trainer.state.step == step:
                raise Killed

        monkeypatch.setattr(run, "_trainer", make)

    return arm


@pytest.fixture
def terminate_in(monkeypatch):
    """Return a function: name of a folder -> SIGTERM comes in the first step of the run in it, until it is None."""
    plain = run._trainer

    def arm(name):
        def make(config, folder, *parts):
            trainer = plain(config, folder, *parts)
            if folder.path.name == name:
                trainer.after_step.append(lambda _: signal.raise_signal(signal.SIGTERM))
            return trainer

        monkeypatch.setattr(run, "_trainer", make)

    return arm


def weights(folder, step):
    return (folder / f"checkpoints/step-{step:06d}/model.safetensors").read_bytes()


def left_by(folder, step=8):
    """Return all that a run leaves but clock readings: the last checkpoint, metrics, the report."""
    names = ("metrics.csv", "checkpoints/best", "checkpoints/latest", "calibration.json")
    last = [folder / f"checkpoints/step-{step:06d}" / name for name in ("optimiser.safetensors", "state.json")]
    report = json.loads((folder / "report/report.json").read_text()) | {"run": ""}
    return [weights(folder, step), *(path.read_bytes() for path in (*last, *(folder / n for n in names))), report]


ADAPTED = [
    pytest.param({"train__compute_dtype": "bfloat16"}, "decoder", id="decoder-bf16"),
    pytest.param({"adapter__kind": "lora", "adapter__dora": True}, "encoder", id="dora"),
    pytest.param({"adapter__kind": "houlsby", "adapter__width": 4}, "decoder", id="houlsby"),
    pytest.param({"adapter__kind": "prefix", "adapter__length": 3}, "encoder", id="prefix"),
    pytest.param({"adapter__kind": "ia3", "head__pooling": "pooler"}, "encoder", id="pooler-ia3"),
    pytest.param({"train__ema_decay": 0.9}, "encoder", id="ema"),
]


@pytest.mark.parametrize("given, kind", ADAPTED)
def test_a_loaded_model_says_what_the_trained_one_said(settings, tmp_path, given, kind):
    """Probabilities of the test rows from the folder alone are those that the report was made of."""
    result = finetune(settings(kind, **given), tmp_path / "run")
    said = result.contenders[0].splits["test"]
    loaded = load_finetuned(tmp_path / "run")
    table = text_table(said.texts)
    again = loaded.predictions(table, loaded.columns(table))
    assert np.array_equal(again.logits, said.logits)
    shares = said.probabilities(json.loads((tmp_path / "run/calibration.json").read_text())["temperature"])
    for row, answer in zip(shares, loaded.predict(table), strict=True):
        assert answer["label"] == ("bad", "good")[row.argmax()]
        assert answer["probabilities"] == pytest.approx(dict(zip(("bad", "good"), row.tolist(), strict=True)))


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


@pytest.fixture
def trainer_of(settings, tmp_path):
    """Return a function: settings -> the trainer of such a run, before its first step."""

    def make(**given):
        config, _, material, model = run.prepared_run(settings(**given), run.Mute())
        folder = RunFolder(tmp_path / "run")
        folder.create()
        with run.joined(config.distributed, torch.device("cpu")) as processes:
            return run._trainer(config, folder, material, model, processes, run.Mute())

    return make


def test_a_run_decays_its_rate_towards_the_bottom(trainer_of):
    """One layer: head, final norm, block and embeddings stand one above the other."""
    groups = trainer_of(scope__layer_decay=0.5, optim__learning_rate=0.8).optimiser.param_groups
    assert {group["peak_lr"] for group in groups} == {0.8, 0.4, 0.2, 0.1}


def test_a_run_unfreezes_its_layers_one_by_one(trainer_of):
    """Before its first steps the head alone learns, later on the block too."""
    trainer = trainer_of(scope__unfreeze_every=5)
    for step, names in ((0, {"head"}), (4, {"head"}), (5, {"head", "backbone.final_norm", "backbone.blocks"})):
        trainer.state.step = step
        for call in trainer.before_step:
            call(trainer)
        learning = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert {".".join(n.split(".")[: 1 + n.startswith("backbone")]) for n in learning} == names


def test_a_run_is_regularised_as_its_settings_say(trainer_of):
    """The attack around R-Drop around the task, and AdaLoRA's penalty, which counts once, around them all."""
    given = {"regulariser__r_drop": 2.0, "regulariser__adversarial": 0.3, "adapter__kind": "adalora"}
    objective = trainer_of(**given).objective
    kinds = [type(objective), type(objective.objective), type(objective.objective.objective)]
    assert kinds == [WithOrthogonality, Adversarial, RDrop]
    assert objective.objective.objective.task.name == "single_label"


def test_a_run_prunes_adalora_to_its_budget(settings, tmp_path):
    """Two triplets of each linear layer on the mean, of the three that there are."""
    given = {"adapter__kind": "adalora", "adapter__rank": 3, "adapter__target_rank": 2, "adapter__prune_every": 1}
    finetune(settings(**given), tmp_path / "run")
    values = [t for n, t in RunFolder(tmp_path / "run").load("latest").model_tensors().items() if n.endswith(".E")]
    assert sum(int(value.ne(0).sum()) for value in values) == 2 * len(values) > 0


def test_a_run_drops_what_its_settings_say_and_not_as_in_pretraining(trainer_of):
    model = trainer_of(backbone__dropout=0.3, head__dropout=0.2).model
    assert (model.config.backbone.dropout, model.backbone.config.dropout, model.head.dropout_p) == (0.3, 0.3, 0.2)


def test_a_head_is_drawn_by_the_seed_of_its_run(settings):
    first, same, other = (
        run.prepared_run(settings(train__seed=seed), run.Mute())[3].head.dense.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_resumed_run_that_does_not_end_has_no_temperature_of_an_earlier_best_checkpoint(settings, tmp_path, kill_at):
    finetune(settings(), tmp_path / "run")
    assert (tmp_path / "run/calibration.json").exists()
    kill_at(10)
    with pytest.raises(Killed):
        resume(tmp_path / "run", {"train": {"max_steps": 12}})
    assert not (tmp_path / "run/calibration.json").exists()


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


def test_a_run_has_no_folder_for_token_shards_which_it_does_not_make(settings, tmp_path):
    finetune(settings(train__max_steps=1), tmp_path / "run")
    assert not (tmp_path / "run/tokens").exists()


def test_seeds_decide_and_nothing_else(settings, tmp_path):
    """Same seed, same bits; another seed, other bits; logging and evaluating change nothing."""
    for name, given in (
        ("a", {}),
        ("b", {"train__eval_every": 8, "train__log_every": 3}),
        ("c", {"train__seed": 1}),
    ):
        finetune(settings(backbone__dropout=0.2, **given), tmp_path / name)
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8) != weights(tmp_path / "c", 8)


def test_the_test_table_decides_nothing(settings, tables, tmp_path):
    """With all of its labels turned round, the same checkpoint is chosen, bit for bit, at the same temperature."""
    with tables["test"].open() as file:
        rows = list(csv.reader(file))
    turned = [rows[0], *([text, "bad" if label == "good" else "good"] for text, label in rows[1:])]
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(turned)
    results = [
        finetune(settings(train__max_steps=16, **given), tmp_path / name)
        for name, given in (("a", {}), ("b", {"data__test": str(tmp_path / "test.csv")}), ("c", {"data__test": ""}))
    ]
    assert results[0].step == results[1].step == results[2].step
    for name in ("metrics.csv", "calibration.json", f"checkpoints/step-{results[0].step:06d}/model.safetensors"):
        assert len({(tmp_path / run / name).read_bytes() for run in "abc"}) == 1, name
    first, second = (result.json()["test"] for result in results[:2])
    assert first["accuracy"] == pytest.approx(1 - second["accuracy"]) and results[2].json()["test"] is None


def test_the_best_checkpoint_is_restored_and_patience_ends_a_run(settings, tmp_path, monkeypatch):
    """Accuracy that only falls: the run ends after two more evaluations, and the first checkpoint is what is judged."""
    figures = iter([0.9, 0.8, 0.7, 0.6, 0.5])
    plain = run.Material.figures

    def falling(self, model, name="valid"):
        return dict(plain(self, model, name)) | {"accuracy": next(figures)}

    monkeypatch.setattr(run.Material, "figures", falling)
    config = settings(train__max_steps=40, train__patience=2)
    result = finetune(config, tmp_path / "run")
    assert result.summary.out_of_patience and result.summary.steps == 12 and result.step == 4
    said = result.contenders[0].splits["valid"]
    loaded, table = load_finetuned(tmp_path / "run", 4), text_table(said.texts)
    assert np.array_equal(said.logits, loaded.predictions(table, loaded.columns(table)).logits)
    again = resume(tmp_path / "run", {})
    assert again.summary.steps == 12 and again.step == 4


@pytest.mark.parametrize("best_by, chosen", [("loss", 8), ("accuracy", 4)])
def test_losses_are_better_lower_and_all_else_higher(settings, tmp_path, monkeypatch, best_by, chosen):
    rows = iter([{"loss": 0.5, "accuracy": 0.9}, {"loss": 0.4, "accuracy": 0.8}])
    monkeypatch.setattr(run.Material, "figures", lambda self, model, name="valid": next(rows) | {"macro_f1": None})
    assert finetune(settings(train__best_by=best_by), tmp_path / "run").step == chosen


@pytest.mark.parametrize("losses, chosen", [((0.5, 0.4), 8), ((0.4, 0.5), 4), ((0.5, 0.5), 4)])
def test_of_equal_figures_that_with_the_lower_loss_is_better_and_then_the_earlier(
    settings, tmp_path, monkeypatch, losses, chosen
):
    """An accuracy that stands still: patience of one ends no run whose loss falls."""
    rows = iter([{"loss": loss, "accuracy": 0.0, "macro_f1": None} for loss in losses])
    monkeypatch.setattr(run.Material, "figures", lambda self, model, name="valid": next(rows))
    result = finetune(settings(train__best_by="accuracy", train__patience=1), tmp_path / "run")
    assert result.step == chosen and result.summary.out_of_patience == (chosen == 4)
    assert RunFolder(tmp_path / "run").load("best").step == chosen


def test_a_figure_that_is_not_there(settings, tmp_path):
    with pytest.raises(InputError, match="train.best_by is bleu; take one of loss, accuracy, macro_f1"):
        finetune(settings(train__best_by="bleu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_weights_have_nothing_of_the_run(settings, tmp_path, tiny_runs):
    """The same shape and tokenizer; another seed draws others, and none is the pretrained one's."""
    config = settings(random=True, optim__learning_rate=1e-30, optim__weight_decay=0.0)
    finetune(config, tmp_path / "random")
    drawn = read_tensors(tmp_path / "random/checkpoints/step-000008/model.safetensors")
    trained = open_source(tiny_runs["encoder"], random=False).tensors
    name = "blocks.0.attention.q.weight"
    assert drawn[f"backbone.{name}"].shape == trained[name].shape
    assert not torch.equal(drawn[f"backbone.{name}"], trained[name])


def test_a_run_begins_with_the_pretrained_weights(settings, tmp_path, tiny_runs):
    """At a vanishing learning rate the backbone stays what it was, bit for bit, but for the language-model head."""
    finetune(settings(optim__learning_rate=1e-30, optim__weight_decay=0.0), tmp_path / "run")
    kept = read_tensors(tmp_path / "run/checkpoints/step-000008/model.safetensors")
    trained = open_source(tiny_runs["encoder"], random=False).tensors
    backbone = {name: tensor for name, tensor in trained.items() if not name.startswith("lm_head.")}
    assert {n.removeprefix("backbone.") for n in kept if n.startswith("backbone.")} == backbone.keys()
    assert all(torch.equal(kept[f"backbone.{name}"], tensor) for name, tensor in backbone.items())


@pytest.mark.parametrize("adapter", [{}, {"adapter__kind": "lora"}], ids=["plain", "lora"])
def test_a_fine_tuned_run_can_be_begun_with(settings, tmp_path, adapter):
    """Its backbone, an adapter merged into it, gives the hidden states that the adapted one gave."""
    finetune(settings(**adapter), tmp_path / "first")
    second = settings(init=str(tmp_path / "first"), optim__learning_rate=1e-30, optim__weight_decay=0.0)
    finetune(second, tmp_path / "second")
    tokens = torch.arange(7, 15)[None]
    one, other = (load_finetuned(tmp_path / name).models[0].backbone(tokens) for name in ("first", "second"))
    assert (one - other).abs().max() < 1e-5 * one.abs().max()


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

    Until then both answer, the second as its last checkpoint has it, which is said."""
    given = {"seeds": 2, "train__checkpoint_every": 2}
    finetune_seeds(settings(**given), tmp_path / "through")
    finetune(settings(train__checkpoint_every=2), tmp_path / "again/seed-0")
    (tmp_path / "again/config.toml").write_text((tmp_path / "through/config.toml").read_text())
    kill_at(5)
    with pytest.raises(Killed):
        finetune(settings(train__checkpoint_every=2, train__seed=1), tmp_path / "again/seed-1")
    kill_at(None)
    assert len(load_finetuned(tmp_path / "again").models) == 2
    assert "the seeds of" in (told := capsys.readouterr().err) and "are not all done, and 2 answer as they are" in told
    resume_seeds(tmp_path / "again", {})
    load_finetuned(tmp_path / "again")
    assert "not all done" not in capsys.readouterr().err
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


def test_seeds_that_are_killed_in_the_first_go_on(settings, tmp_path, kill_at):
    """The folder knows of all of them from the first step on."""
    kill_at(3)
    with pytest.raises(Killed):
        finetune_seeds(settings(seeds=2, train__checkpoint_every=2), tmp_path / "out")
    kill_at(None)
    assert resume_seeds(tmp_path / "out", {}).results.keys() == {0, 1}


def test_zero_means_the_same_in_a_resumed_run_as_in_a_new_one(settings, tmp_path):
    """As many steps as the epochs take, evaluations by the epoch, a checkpoint after each; the warm-up stays."""
    given = {"train__epochs": 2.0, "train__evals_per_epoch": 1.0, "optim__warmup_fraction": 0.5}
    zeros = {"max_steps": 0, "eval_every": 0, "checkpoint_every": 0}
    finetune(settings(**given, train__max_steps=4), tmp_path / "run")
    assert resume(tmp_path / "run", {"train": zeros}).summary.steps == 12  # 48 rows, 8 a step
    kept = read_toml(tmp_path / "run/config.toml")
    assert [kept["train"][name] for name in zeros] == [12, 6, 6] and kept["optim"]["warmup_steps"] == 2


def test_single_texts_may_be_as_short_as_the_settings_allow(settings, tmp_path):
    """No room for a second text is no matter where there is none: neither in training nor when the run is used."""
    finetune(settings(text__max_length=4, train__max_steps=2), tmp_path / "run")
    assert load_finetuned(tmp_path / "run").encoder.max_length == 4


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


def test_rows_in_two_splits_are_counted(settings, tables, tmp_path):
    """The warning stands in the report."""
    config = settings(data__valid=str(tables["train"]), train__max_steps=2)
    finetune(config, tmp_path / "run")
    assert "48 of 48 rows of" in (tmp_path / "run/report/report.md").read_text()


def test_evaluation_holds_one_batch_at_a_time(settings, tmp_path):
    """In evaluation mode without gradients; what a batch gave is gone when the next one comes."""
    import weakref

    finetune(settings(train__max_steps=1), tmp_path / "run")
    loaded = load_finetuned(tmp_path / "run")
    (model,) = loaded.models
    alive = []

    def look(module, inputs, output):
        assert not module.training and not torch.is_grad_enabled() and output.grad_fn is None
        assert not any(reference() is not None for reference in alive)
        alive.append(weakref.ref(output))

    model.train().backbone.register_forward_hook(look)
    rows = text_table(["good day"] * 300)
    assert loaded.predictions(rows, loaded.columns(rows)).logits.shape == (300, 2)
    assert len(alive) == 5 and model.training


@pytest.mark.parametrize(
    "task, name, value",
    [
        ("tagging", "pooling", "pooler"),
        ("question_answering", "pooling", "cls"),
        ("prompt_answer", "pooling", "last"),
        ("prompt_answer", "layer", "relu"),
        ("prompt_answer", "bias", False),
    ],
)
def test_a_setting_that_the_head_of_a_task_has_no_use_for_is_refused(task, name, value):
    """Those that it has are taken."""
    others = {} if task == "prompt_answer" else {"layer": "transform", "bias": False}
    build(FinetuneConfig, {"task": {"name": task}, "head": others | {"dropout": 0.0}})
    with pytest.raises(InputError, match=f"head.{name} is {value}, and the head of {task} has no use for it"):
        build(FinetuneConfig, {"task": {"name": task}, "head": {name: value}})


@pytest.mark.parametrize(
    "table, name",
    [
        pytest.param({"scope": {"unfreeze_every": 2}}, "scope.unfreeze_every", id="unfreezing"),
        pytest.param({"adapter": {"kind": "adalora"}}, "adalora", id="adalora"),
        pytest.param({"regulariser": {"adversarial": 0.1}}, "regulariser.adversarial", id="adversarial"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_processes_share_them(table, name):
    def check(strategy, **given):
        config = build(FinetuneConfig, given | {"distributed": {"strategy": strategy}})
        cpu = torch.device("cpu")
        run.check_sharded(config, Processes(device=cpu, size=2, store=HashStore(), config=config.distributed))

    check("fsdp")
    check("ddp", **table)
    with pytest.raises(InputError, match=f"{name} goes with distributed.strategy = ddp"):
        check("fsdp", **table)


def test_a_preset_refuses_words_that_are_no_list_by_their_row(tmp_path):
    """Its tokenizer learns from the words before the task looks at them."""
    rows = [{"tokens": ["Ada", "went"], "tags": ["B-PER", "O"]}, {"tokens": 3, "tags": ["O"]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"preset": "tiny-encoder", "task": {"name": "tagging"}}
    table["data"] = dict.fromkeys(("train", "valid"), str(tmp_path / "train.jsonl"))
    with pytest.raises(InputError, match="line 2: tokens takes a list of words, got 3"):
        finetune(build(FinetuneConfig, table), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_headings_of_figures_stand_apart():
    figures = {"best_f1": 0.5, "best_threshold_of_all": None}
    heading, line = run.table_lines([report.Contender(name=run.THIS, splits={"test": figures})])
    assert heading.split() == ["test", *figures] and line.split() == [">", *run.THIS.split(), "0.5000", "-"]
