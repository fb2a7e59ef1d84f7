"""A run from its beginning to its figures, and what stays when it cannot begin."""

import dataclasses
import json
import math
import platform
import shutil

import pytest
import torch

from minillm import pretrain as module
from minillm import pretrain_config
from minillm.anchors import Anchor
from minillm.checkpoint.native import read_tensors
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, read_toml
from minillm.data.corpora import open_corpus
from minillm.errors import InputError
from minillm.evaluate import Evaluation
from minillm.pretrain import plotted_losses, pretrain, resume
from minillm.pretrain_config import PretrainConfig
from minillm.training.progress import Progress


def test_result(tiny_config, tmp_path):
    """The figures of the contract, those of the held-out text in bits per byte, and a table that names anchors."""
    result = pretrain(tiny_config(), tmp_path / "run")
    figures = result.json()
    assert figures["run"] == str(tmp_path / "run") and figures["steps"] == 4
    assert figures["valid_loss"] == result.evaluation.loss and figures["bits_per_byte"] > 0
    assert figures["masked_accuracy"] is None
    assert any("xz primed" in line for line in result.table) and "beats" in result.table[-1]


def test_anchors_come_into_the_plot_in_its_unit():
    """A model's loss follows from its bits per byte by the same rule; anchors with a loss keep it; few are shown."""
    model = Evaluation(loss=2.5, perplexity=12.2, bits_per_byte=1.25, masked_accuracy=None, targets=100)
    num_bytes = round(2.5 * 100 / (1.25 * math.log(2)))
    anchors = [Anchor(name=name, bits_per_byte=1.25) for name in ("uniform", "unigram", "3-gram", "xz")]
    assert plotted_losses(anchors, model, num_bytes=num_bytes) == pytest.approx(
        {"unigram": 2.5, "3-gram": 2.5}, rel=0.01
    )
    anchors = [Anchor(name="unigram", loss=6.0, masked_accuracy=0.1)]
    assert plotted_losses(anchors, model, num_bytes=num_bytes) == {"unigram": 6.0}


def test_corpus_card(tiny_runs):
    """The run keeps its text's name, digest and sizes, and the Python whose library it may be."""
    card = json.loads((tiny_runs["decoder"] / "corpus.json").read_text())
    corpus = open_corpus(read_toml(tiny_runs["decoder"] / "config.toml")["data"]["input"])
    assert card["digest"] == corpus.digest and card["name"] == corpus.name
    assert card["bytes"] == {split: corpus.num_bytes(split) for split in ("train", "valid")}
    assert card["python"] == platform.python_version()


def test_configuration_is_kept_whole(tiny_runs, tiny_config):
    """config.toml rebuilds the settings; the vocabulary's size is the tokenizer's."""
    kept = build(PretrainConfig, read_toml(tiny_runs["encoder"] / "config.toml"), source="the run")
    asked = tiny_config("encoder")
    assert kept == dataclasses.replace(asked, model=dataclasses.replace(asked.model, vocab_size=320))


def test_a_larger_vocabulary_is_allowed(tiny_config, tmp_path):
    """Room for tokens to come, or a multiple that is fast: the model has more rows than the tokenizer tokens."""
    pretrain(tiny_config(model={"vocab_size": 384}, train={"max_steps": 1}), tmp_path / "run")
    tensors = read_tensors(tmp_path / "run/checkpoints/step-000001/model.safetensors")
    assert 384 in {tensor.shape[0] for tensor in tensors.values()}


def test_what_cannot_begin_leaves_no_folder(tiny_config, tmp_path, monkeypatch):
    """An error at any point before the first checkpoint: what this call made is gone again."""

    def fail(*_, **__):
        raise InputError("no weights today")

    monkeypatch.setattr(module, "build_model", fail)
    with pytest.raises(InputError, match="no weights today"):
        pretrain(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # an empty folder of the user's own stays
    with pytest.raises(InputError):
        pretrain(tiny_config(), tmp_path / "run")
    assert (tmp_path / "run").exists()


def test_the_bar_goes_when_text_is_interrupted(tiny_config, tiny_runs, tmp_path, monkeypatch):
    """Ctrl-C while text is encoded, in a new run and on resume: the bar, which hides the cursor, is taken away."""
    stopped = []

    class Watched(Progress):
        def stop(self):
            stopped.append(self)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "gather", interrupted)
    for go in (
        lambda progress: pretrain(tiny_config(), tmp_path / "run", progress=progress),
        lambda progress: resume(tiny_runs["decoder"], {}, progress=progress),
    ):
        progress = Watched(quiet=True)
        with pytest.raises(KeyboardInterrupt):
            go(progress)
        assert stopped[-1] is progress


def test_an_interrupted_beginning_can_be_begun_again(tiny_config, tmp_path):
    """A folder without a checkpoint has nothing to lose: no --overwrite is needed, nor the same text."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.corpus_path.write_text('{"digest": "of some other text"}')
    assert pretrain(tiny_config(train={"max_steps": 1}), tmp_path / "run").summary.steps == 1


def test_init_takes_architecture_weights_and_tokenizer(tiny_config, tiny_runs, tmp_path):
    """[model] of the new settings gives way to the other run's; weights begin where it ended."""
    nothing = {"learning_rate": 1e-30, "adamw_learning_rate": 1e-30, "weight_decay": 0.0}
    config = tiny_config(model={"width": 64}, train={"max_steps": 1}, optim=nothing)
    pretrain(config, tmp_path / "run", init=tiny_runs["decoder"])
    old = read_tensors(tiny_runs["decoder"] / "checkpoints/step-000004/model.safetensors")
    new = read_tensors(tmp_path / "run/checkpoints/step-000001/model.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    for name in ("tokenizer.toml", "tokenizer.model"):
        assert (tmp_path / "run/tokenizer" / name).read_bytes() == (
            tiny_runs["decoder"] / "tokenizer" / name
        ).read_bytes()


def test_init_says_in_config_toml_which_tokenizer_it_took(tiny_config, tiny_runs, tmp_path):
    """[tokenizer] of the new settings gives way to the other run's, as [model] does."""
    config = tiny_config(tokenizer={"kind": "char", "vocab_size": 77}, train={"max_steps": 1})
    pretrain(config, tmp_path / "run", init=tiny_runs["decoder"])
    kept, other = (read_toml(run / "config.toml") for run in (tmp_path / "run", tiny_runs["decoder"]))
    assert kept["tokenizer"] == other["tokenizer"] and kept["tokenizer"]["kind"] == "bpe"


@pytest.mark.parametrize("name", ["model.width", "optim.learning_rate", "data.input", "train.seed", "objective.z_loss"])
def test_resume_keeps_the_past(tiny_runs, name):
    """A setting that would make the run another one is refused, with those that may change and the way round."""
    section, key = name.split(".")
    with pytest.raises(InputError, match=rf"{name} cannot change.*train.max_steps.*--init"):
        resume(tiny_runs["decoder"], {section: {key: 1}})


def test_patience_that_is_out_can_be_raised(tiny_config, tmp_path):
    """As the program advises: the run then goes on to as many evaluations without a better one."""
    still = {"learning_rate": 1e-30, "adamw_learning_rate": 1e-30}
    still = {"optim": still, "train": {"patience": 1, "max_steps": 9, "eval_every": 1}}
    first = pretrain(tiny_config(**still), tmp_path / "run").summary
    assert first.out_of_patience and first.steps == 2  # the look after step 1 is the best, and one more was allowed
    again = resume(tmp_path / "run", {"train": {"patience": 3}}).summary
    assert again.out_of_patience and again.steps == first.steps + 2


def test_a_rehearsal_of_a_resume_leaves_the_length_of_the_run(tiny_config, tmp_path, monkeypatch):
    """Step 4 is reached, 3 more are rehearsed, and config.toml keeps the nine that were asked for."""
    pretrain(tiny_config(), tmp_path / "run")
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setattr(pretrain_config, "QUICK_STEPS", 3)
    assert resume(tmp_path / "run", {"train": {"max_steps": 9}}).summary.steps == 7
    monkeypatch.delenv("QUICK")
    assert resume(tmp_path / "run", {}).summary.steps == 9


def test_resume_of_a_finished_run_changes_no_weight(tiny_config, tmp_path):
    """No steps left: the same weights, and the figures once more."""
    first = pretrain(tiny_config(), tmp_path / "run")
    weights = (tmp_path / "run/checkpoints/step-000004/model.safetensors").read_bytes()
    again = resume(tmp_path / "run", {})
    assert again.evaluation == first.evaluation and again.table == first.table
    assert (tmp_path / "run/checkpoints/step-000004/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_resumed_with_recomputed_blocks_is_the_run_that_kept_them(tiny_config, tmp_path, compute_dtype):
    """Spans, dropout, Muon, means of the weights, micro-batches: not a bit differs, whichever way blocks are kept."""
    train = {"ema_decay": 0.9, "micro_batch_size": 2, "compute_dtype": compute_dtype}
    model = {"dropout": 0.2, "attention_dropout": 0.1, "num_layers": 2}
    pretrain(tiny_config("encoder", train=train, model=model, objective={"masking": "span"}), tmp_path / "through")
    shutil.copytree(tmp_path / "through", tmp_path / "other")
    shutil.rmtree(tmp_path / "other/checkpoints/step-000004")
    (tmp_path / "other/checkpoints/latest").write_text("step-000002\n")
    resume(tmp_path / "other", {"train": {"checkpoint_activations": True}})
    for file in ("model.safetensors", "unaveraged.safetensors", "optimiser.safetensors", "state.json"):
        through, other = ((tmp_path / run / "checkpoints/step-000004" / file) for run in ("through", "other"))
        assert other.read_bytes() == through.read_bytes(), file
    assert (tmp_path / "other/metrics.csv").read_bytes() == (tmp_path / "through/metrics.csv").read_bytes()


def test_commands_that_are_said_can_be_copied(tiny_config, tmp_path):
    pretrain(tiny_config(train={"max_steps": 1}), tmp_path / "my run")
    with pytest.raises(InputError, match=f"or use --resume '{tmp_path / 'my run'}'$"):
        pretrain(tiny_config(train={"max_steps": 1}), tmp_path / "my run")


def test_what_is_said(tiny_config, tmp_path, capsys):
    """Notes go to standard error: the tokenizer, the model's size, and the table; standard output stays clean."""
    pretrain(tiny_config(train={"max_steps": 1}), tmp_path / "run", progress=Progress())
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("training a bpe tokenizer on letters.txt", "decoder of", "parameters on cpu", "this model"):
        assert words in captured.err
