"""`minillm explain` on a tiny run of random weights: what it prints, writes, and refuses."""

from __future__ import annotations

import json
import shutil

import pytest

from minillm import cli
from minillm.checkpoint.files import write_text
from minillm.checkpoint.native import tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, toml_text
from minillm.finetune.config import FinetuneConfig, HeadConfig, TaskConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.predict import load_finetuned
from minillm.finetune.table import text_table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.single_label import SingleLabel
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.tokenizer.character import CharacterTokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a classifier that was never trained."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "reviews")
    tokenizer = CharacterTokenizer("abcdefgh ")
    backbone = ModelConfig(
        kind="encoder", vocab_size=tokenizer.vocab_size, context=16, num_layers=2, width=8, num_heads=2, head="none"
    )
    task = SingleLabel(TaskConfig(), TaskFacts(labels=("bad", "good")))
    config = TaskModelConfig(task=task.facts, text=TextConfig(), backbone=backbone, head=HeadConfig())
    model = TaskModel(config, build_model(backbone), task.make_head(HeadConfig(), backbone))
    folder.create()
    tokenizer.save(folder.tokenizer_path)
    write_text(folder.config_path, toml_text(build(FinetuneConfig, {}, source="a test")))
    folder.save(1, tensors_of(model), config, {}, {}, best=True)
    return folder.path


@pytest.fixture
def minillm(capsys):
    """Return a function: words -> (exit status, standard output, standard error)."""

    def ask(*words):
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ask


def test_the_pieces_are_printed_with_their_scores(minillm, run):
    status, out, err = minillm("explain", run, "--text", "ab c")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in lines[2:]] == ["[CLS]", "a", "b", "'", "c", "[SEP]"]
    (answer,) = load_finetuned(run).predict(text_table(["ab c"]))
    assert lines[0].startswith(f"{answer['label']}: probability {answer['probabilities'][answer['label']]:.4f}")
    assert "the scores sum to" in lines[1]


@pytest.mark.parametrize("words", [(), ("--attention",)], ids=["scores", "attention"])
def test_what_of_the_text_was_not_read_is_said(minillm, run, words):
    """As `predict` says it: 20 characters, of which 14 fit between the control symbols."""
    status, _, err = minillm("explain", run, "--text", "abcd" * 5, *words)
    assert (status, err) == (0, "the text does not fit 16 tokens: 6 tokens were not read\n")


@pytest.mark.parametrize("words", [(), ("--attention",)], ids=["scores", "attention"])
def test_what_only_training_needs_may_be_gone(minillm, run, tmp_path, words):
    shutil.copytree(run, tmp_path / "run")
    asked = ("explain", tmp_path / "run", "--text", "ab c", *words)
    before = minillm(*asked)
    (tmp_path / "run/checkpoints/step-000001/optimiser.safetensors").unlink()
    assert minillm(*asked) == before and before[0] == 0


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_input", "occlusion"])
def test_json_has_what_the_lines_have(minillm, run, method):
    status, out, _ = minillm("explain", run, "--text", "ab c", "--method", method, "--label", "good", "--json")
    (line,) = out.splitlines()
    found = json.loads(line)
    assert status == 0
    assert (found["label"], found["method"], found["complete"]) == ("good", method, True)
    assert sum(piece["score"] for piece in found["pieces"]) == pytest.approx(found["sum"])
    if method == "integrated_gradients":
        assert found["sum"] - found["gap"] == pytest.approx(found["value"] - found["baseline_value"], abs=1e-9)
    else:
        assert (found["gap"], found["steps"]) == (None, None)


def test_pngs_go_where_they_are_asked_to(minillm, run, tmp_path):
    status, out, _ = minillm("explain", run, "--text", "ab c", "--out", tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "attribution.png"
    assert status == 0 and out.splitlines()[-1] == f"wrote {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text", "ab", "--label", "god"], "--label 'god' is none of this run's; it knows bad, good"),
        (["--text", "ab", "--method", "magic"], "invalid choice: 'magic'"),
        (["--text", ""], "empty"),
        (["--text", "ab", "--out", "FILE"], "cannot write"),
        ([], "--text"),
    ],
    ids=["label", "method", "text", "out", "nothing"],
)
def test_what_cannot_be_explained_is_one_line_and_status_2(minillm, run, tmp_path, words, message):
    (tmp_path / "FILE").write_text("a file")
    words = [tmp_path / word if word == "FILE" else word for word in words]
    status, out, err = minillm("explain", run, *words)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["predict", "explain"])
@pytest.mark.parametrize(
    "kept, message",
    [
        ('{"temperature": 0}', "calibration.json is damaged: temperature is 0, no number above 0"),
        ('{"temperature": NaN}', "calibration.json"),
        ('{"temperature": "hot"}', "temperature is 'hot'"),
        ('{"temperature": 1.5, "thresholds": [0.5, 0.5]}', "thresholds are 0 numbers, got [0.5, 0.5]"),
    ],
    ids=["zero", "nan", "word", "thresholds"],
)
def test_a_damaged_calibration_is_one_line_and_status_2(minillm, run, tmp_path, command, kept, message):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/calibration.json").write_text(kept)
    status, out, err = minillm(command, tmp_path / "run", "--text", "ab")
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_attention_of_a_finetuned_run_is_printed_and_drawn(minillm, run, tmp_path):
    words = ("explain", run, "--text", "ab c", "--attention", "--out", tmp_path / "new")
    status, out, err = minillm(*words)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in lines[1:4]] == [["0", "[CLS]"], ["1", "a"], ["2", "b"]]
    assert [line for line in lines if line.startswith("layer")][1].startswith("layer 1, mean of 2 heads")
    for layer in (0, 1):
        path = tmp_path / "new" / f"attention-layer-0{layer}.png"
        assert f"wrote {path}" in lines and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_attention_of_a_pretrained_run_is_json(minillm, tiny_runs, kind):
    status, out, _ = minillm("explain", tiny_runs[kind], "--text", "I am", "--attention", "--heads", "1", "--json")
    found = json.loads(out)
    assert status == 0 and [(m["layer"], m["head"]) for m in found["attention"]] == [(0, 1)]
    first, last = ("<s>", "</s>") if kind == "decoder" else ("[CLS]", "[SEP]")
    assert (found["pieces"][0], found["pieces"][-1]) == (first, last)
    for query, row in enumerate(found["attention"][0]["weights"]):
        assert len(row) == len(found["pieces"]) and sum(row) == pytest.approx(1.0, abs=1e-5)
        assert kind == "encoder" or row[query + 1 :] == [0.0] * (len(row) - query - 1)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text", "I", "--attention", "--layers", "0,1"], "layers are counted from 0 to 0 in this model, got 1"),
        (["--text", "I", "--attention", "--heads", "x"], "--heads takes numbers from 0 such as 0,3, got 'x'"),
        (["--text", "I", "--attention", "--heads", "9" * 5000], "--heads takes numbers from 0 such as 0,3, got '99"),
        (["--text", "I", "--attention", "--label", "x"], "--label is of the scores, not of --attention"),
        (["--text", "I", "--attention", "--pair", "x"], "the run reads single texts: leave out --pair"),
        (["--text", "I", "--layers", "0"], "--layers goes with --attention"),
        (["--text", "", "--attention"], "text is empty"),
        (["--text", "I am " * 99, "--attention"], "tokens, the model's context is 16; shorten it"),
        (["--text", "I"], "is a pretraining run and knows no labels"),
    ],
    ids=["layer", "heads", "digits", "label", "pair", "alone", "empty", "long", "scores"],
)
def test_what_has_no_attention_to_show_is_one_line_and_status_2(minillm, tiny_runs, words, message):
    status, out, err = minillm("explain", tiny_runs["encoder"], *words)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
