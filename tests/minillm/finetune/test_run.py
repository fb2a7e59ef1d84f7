"""Fine-tuning runs repeat bit for bit, do what their settings say, and let nothing of the test table reach a choice."""

import csv
import json

import numpy as np
import pytest
import torch
from leftovers import weights
from torch.distributed import HashStore

from minillm.checkpoint.native import read_tensors
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build
from minillm.errors import InputError
from minillm.finetune import report, run
from minillm.finetune.adapters.adalora import WithOrthogonality
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.predict import load_finetuned
from minillm.finetune.regularisers.adversarial import Adversarial
from minillm.finetune.regularisers.r_drop import RDrop
from minillm.finetune.run import finetune, resume
from minillm.finetune.source import open_source
from minillm.finetune.table import text_table
from minillm.training.distributed import Processes

pytestmark = pytest.mark.usefixtures("undrawn")


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


def test_single_texts_may_be_as_short_as_the_settings_allow(settings, tmp_path):
    """No room for a second text is no matter where there is none: neither in training nor when the run is used."""
    finetune(settings(text__max_length=4, train__max_steps=2), tmp_path / "run")
    assert load_finetuned(tmp_path / "run").encoder.max_length == 4


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
