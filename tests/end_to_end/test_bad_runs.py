"""A run that lacks something, or is not the one that a command needs: one line that says so, and nothing changed."""

import json
import shutil

import pytest
from small_runs import files_of, one_line, train

from minillm.checkpoint.manifest import renew_manifest


def test_missing_tokenizer(minillm, run):
    """A run folder without its tokenizer says so."""
    shutil.rmtree(run / "tokenizer")
    assert "tokenizer" in one_line(minillm("generate", run, "--prompt", "the"))


@pytest.mark.parametrize(
    "kind, words",
    [
        pytest.param("decoder", ("evaluate",), id="evaluate"),
        pytest.param("encoder", ("fill", "--text", "the [MASK]"), id="fill"),
        pytest.param("decoder", ("tokenizer", "encode", "--text", "the"), id="tokenizer encode"),
    ],
)
@pytest.mark.parametrize("how", ["folder", "model file"])
def test_missing_tokenizer_of_other_commands(minillm, runs, tmp_path, kind, words, how):
    """A run without its tokenizer, or with half of it, says so to each command that needs one."""
    shutil.copytree(runs / kind, tmp_path / "run")
    if how == "folder":
        shutil.rmtree(tmp_path / "run/tokenizer")
    else:
        (tmp_path / "run/tokenizer/tokenizer.model").unlink()
    verbs, options = [w for w in words[:2] if not w.startswith("-")], [*words]
    command = [*verbs, tmp_path / "run", *options[len(verbs) :]]
    assert "tokenizer" in one_line(minillm(*command))


def test_checkpoint_of_another_architecture(minillm, run):
    """Weights that do not fit config.json are refused by name."""
    for path in run.glob("checkpoints/step-*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 32}))
        renew_manifest(path.parent)
    line = one_line(minillm("generate", run, "--prompt", "the"))
    assert "model.safetensors" in line


def test_a_damaged_checkpoint(minillm, run):
    """A truncated weights file is refused by name."""
    for path in run.glob("checkpoints/step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in one_line(minillm("generate", run, "--prompt", "the"))


@pytest.mark.parametrize("damage", ["missing", "unknown key", "no TOML"])
def test_run_folder_without_its_configuration(minillm, run, damage):
    """evaluate and --resume need config.toml and name it; generate works without one that is only missing."""
    config = run / "config.toml"
    if damage == "missing":
        config.unlink()
        assert minillm("generate", run, "--prompt", "The", "--max-tokens", 2)[0] == 0
    else:
        config.write_text("[train]\nmax_step = 3\n" if damage == "unknown key" else "train = [")
        assert "config.toml" in one_line(minillm("generate", run, "--prompt", "The"))
    assert "config.toml" in one_line(minillm("evaluate", run))
    assert "config.toml" in one_line(minillm("pretrain", "--resume", run, "--quiet"))


@pytest.mark.parametrize("kept", [[], ["[model]", "context = 16"]], ids=["empty", "cut"])
def test_resume_with_a_config_that_has_lost_its_model(minillm, run, kept):
    """The size of the vocabulary is among what is lost, and no model can be built without it."""
    (run / "config.toml").write_text("\n".join(kept))
    line = one_line(minillm("pretrain", "--resume", run, "--train.max_steps", 9))
    assert "is of another architecture: model." in line and "use the [model] section" in line


def test_resume_refuses_another_model(minillm, runs):
    """The architecture of a run cannot change on resume."""
    line = one_line(minillm("pretrain", "--resume", runs / "decoder", "--model.width", "32"))
    assert "model.width" in line


def test_text_that_changed_under_a_run(minillm, tmp_path, text):
    """evaluate and --resume on another text than the run was begun with: its digest differs, nothing is done."""
    (tmp_path / "mine.txt").write_text(text.read_text())
    assert train(minillm, tmp_path / "mine.txt", tmp_path / "run")[0] == 0
    before = files_of(tmp_path / "run")
    (tmp_path / "mine.txt").write_text(text.read_text() + "One more line.")
    assert "digest differs" in one_line(minillm("evaluate", tmp_path / "run"))
    assert "digest differs" in one_line(
        minillm("pretrain", "--resume", tmp_path / "run", "--train.max_steps", 9, "--quiet")
    )
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    "words, hint",
    [
        pytest.param(("--preset", "tiny-encoder"), "objective.name (masked_lm) does not fit model.kind", id="kind"),
        pytest.param(("--model.width", "32"), "leave out --model.width", id="another architecture"),
        pytest.param(("--tokenizer.kind", "char"), "leave out --tokenizer.kind", id="another tokenizer"),
    ],
)
def test_init_takes_the_model_as_it_is(minillm, runs, text, tmp_path, words, hint):
    """--init with a preset of the other kind, or with a setting of model or tokenizer that could only be ignored."""
    common = ("--init", runs / "decoder", "--data.input", text, "--out", tmp_path / "run", "--quiet")
    assert hint in one_line(minillm("pretrain", *common, *words))
    assert not (tmp_path / "run").exists()


def test_init_writes_nowhere_that_another_runs_settings_name(minillm, runs, text, tmp_path):
    """A cache in the config.toml of the run that --init names is not filled; one of the user's own words is."""
    shutil.copytree(runs / "decoder", tmp_path / "theirs")
    settings = (tmp_path / "theirs/config.toml").read_text()
    cache = f"[data]\ncache = {json.dumps(str(tmp_path / 'outside'))}\n"
    (tmp_path / "theirs/config.toml").write_text(settings.replace("[data]\n", cache))
    words = ("pretrain", "--init", tmp_path / "theirs", "--train.max_steps", 1, "--quiet", "--out")
    assert minillm(*words, tmp_path / "new")[0] == 0
    assert not (tmp_path / "outside").exists() and (tmp_path / "new/tokens/meta.json").is_file()
    assert minillm(*words, tmp_path / "own", "--data.cache", tmp_path / "mine")[0] == 0
    assert (tmp_path / "mine/meta.json").is_file() and not (tmp_path / "own/tokens/meta.json").exists()


@pytest.mark.parametrize("words", [("--resume",), ("--init",), ("--preset", "tiny-encoder", "--init")], ids=" ".join)
@pytest.mark.parametrize("config", [True, False], ids=["with config.toml", "without"])
def test_pretraining_does_not_go_on_with_a_fine_tuned_or_imported_model(
    minillm, runs, tmp_path, monkeypatch, words, config
):
    """A line that says which command does, or what is to be given beside --init."""
    monkeypatch.chdir(tmp_path)  # where runs/ would be made
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "a good one,1\na bad one,0\n" * 8)
    tuned = ("finetune", runs / "encoder", "--train", table, "--valid", table, "--out", tmp_path / "tuned", "--quiet")
    assert minillm(*tuned, "--train.max_steps", 1, "--train.device", "cpu")[0] == 0
    if not config:
        (tmp_path / "tuned/config.toml").unlink()
    line = one_line(minillm("pretrain", *words, tmp_path / "tuned"))
    if config or "--preset" in words:
        assert f"is a fine-tuning run; go on with minillm finetune --resume {tmp_path / 'tuned'}" in line
    else:
        assert f"CONFIG.toml or --preset NAME beside --init {tmp_path / 'tuned'}" in line
