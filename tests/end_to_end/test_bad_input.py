"""Wrong input: one clear line on standard error, exit status 2, and nothing lost or half-written."""

import json
import shutil

import pytest
import torch
from small_runs import in_a_process, options

from minillm.checkpoint.manifest import renew_manifest


def one_line(outcome):
    """Return the only line of an error, after checking that it is one and that the status is 2."""
    status, out, err = outcome
    assert status == 2, f"exit status {status}: {err}"
    assert out == ""
    line = err.strip()
    assert line.startswith("minillm: ") and "\n" not in line, err
    assert "Traceback" not in line
    return line


def train(minillm, source, out, *words, **settings):
    """Begin a small run on `source`."""
    return minillm(
        "pretrain",
        "--preset",
        "tiny-decoder",
        "--data.input",
        source,
        "--out",
        out,
        "--quiet",
        *options(**settings),
        *words,
    )


def test_empty_file(minillm, tmp_path):
    """An empty text is named, and no run folder stays."""
    (tmp_path / "empty.txt").write_text("")
    line = one_line(train(minillm, tmp_path / "empty.txt", tmp_path / "run"))
    assert "empty.txt" in line
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_text(minillm, tmp_path):
    """Bytes that are not UTF-8 are named, with the file."""
    (tmp_path / "picture.txt").write_bytes(b"good so far \xff\xfe\x00\x81" * 50)
    line = one_line(train(minillm, tmp_path / "picture.txt", tmp_path / "run"))
    assert "picture.txt" in line and "UTF-8" in line
    assert not (tmp_path / "run").exists()


def test_a_missing_file(minillm, tmp_path):
    """A path that is not there is named."""
    line = one_line(train(minillm, tmp_path / "nowhere.txt", tmp_path / "run"))
    assert "nowhere.txt" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_corpus_names_the_nearest(minillm, tmp_path):
    """A mistyped name of an embedded corpus brings the right one."""
    assert "stdlib-docs" in one_line(train(minillm, "stdlib-doc", tmp_path / "run"))


@pytest.mark.parametrize(
    "words, hint",
    [
        pytest.param(("--train.max_step", "5"), "train.max_steps", id="option"),
        pytest.param(("--model.widht", "5"), "model.width", id="typo"),
        pytest.param(("--train.max_steps", "many"), "train.max_steps takes int, got 'many'", id="type"),
        pytest.param(("--model.norm", "batch_norm"), "one of layer_norm, rms_norm", id="choice"),
        pytest.param(("--model.num_heads", "3"), "must divide", id="cross-check"),
        pytest.param(("--model.position", "rotary", "--model.head_width", "7"), "even head width", id="rotary"),
        pytest.param(("--train.micro_batch_size", "3"), "try 2", id="a batch that does not fit"),
        pytest.param(("--objective.name", "masked_lm"), "causal_lm", id="objective of the other kind"),
        pytest.param(("--model.vocab_size", "7"), "vocab", id="fewer ids than tokens"),
    ],
)
def test_wrong_settings(minillm, tmp_path, text, words, hint):
    """The setting, what came and what to do are in the line; no run folder stays."""
    assert hint in one_line(train(minillm, text, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_file(minillm, tmp_path, text):
    """A key of a configuration file that is not known brings the nearest one and the file's name."""
    (tmp_path / "run.toml").write_text("[train]\nmax_step = 5\n")
    line = one_line(minillm("pretrain", tmp_path / "run.toml", "--data.input", text, "--out", tmp_path / "run"))
    assert "train.max_steps" in line and "run.toml" in line


@pytest.mark.parametrize(
    "words, hint",
    [
        pytest.param(("pretrian",), "pretrain", id="command"),
        pytest.param(("pretrain",), "--preset", id="nothing to train"),
        pytest.param(("pretrain", "--preset", "tiny-decodr"), "tiny-decoder", id="preset"),
        pytest.param(("pretrain", "nowhere.toml"), "nowhere.toml", id="configuration file"),
        pytest.param(("pretrain", "--resume", "nowhere"), "nowhere", id="resume"),
        pytest.param(("generate", "nowhere", "--prompt", "a"), "nowhere", id="run"),
        pytest.param(("generate", "nowhere", "--promt", "a"), "--prompt", id="option of generate"),
        pytest.param(("fill", "nowhere"), "--text", id="missing option"),
        pytest.param(
            ("evaluate", "nowhere", "--devise", "cpu"),
            "minillm: unknown option --devise; did",
            id="the program named once",
        ),
        pytest.param(("tokenizer", "trian"), "train", id="tokenizer's command"),
        pytest.param(("tokenizer", "encode", "nowhere", "--text", "a"), "no folder nowhere", id="tokenizer's folder"),
        pytest.param(("data", "shwo"), "show", id="data's command"),
        pytest.param(("kernels", "--device", "abacus"), "--device asks for abacus", id="device"),
    ],
)
def test_wrong_words(minillm, words, hint):
    """The nearest right word, or what is missing, is in the line."""
    assert hint in one_line(minillm(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "nowhere", "--prompt=--"),
        ("generate", "nowhere", "--prompt", "a", "--stop=--"),
        ("fill", "nowhere", "--text=--"),
    ],
    ids=" ".join,
)
def test_two_dashes_are_no_value(minillm, words):
    """Also where an option may come several times."""
    assert f"{words[-1][:-3]} takes a value, got '--'" in one_line(minillm(*words))


@pytest.mark.parametrize("option", ["--data.cache", "--out", "--data.input"])
@pytest.mark.parametrize("word", ["caf\udce9", "a\0b"], ids=["stray byte", "zero"])
def test_bytes_that_are_no_text(minillm, text, tmp_path, option, word):
    """A name that the shell hands on as bytes which are not UTF-8: config.toml could not hold it."""
    words = ("pretrain", "--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run")
    assert "is not UTF-8" in one_line(minillm(*words, option, word))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 9000,
        "[train]\nseed = 1" + "0" * 5000,
        '[data]\ninput = "a\\u0000b"',
        "[train]\nseed = " + "9" * 30,
    ],
    ids=["nested", "five thousand digits", "zero", "thirty digits"],
)
def test_configuration_files_that_no_reader_likes(minillm, tmp_path, content):
    (tmp_path / "run.toml").write_text(content)
    line = one_line(minillm("pretrain", tmp_path / "run.toml", "--out", tmp_path / "run"))
    assert "run.toml" in line or "train.seed" in line or "data.input" in line


@pytest.mark.parametrize("words", [("evaluate", "--checkpoint"), ("tokenizer", "decode", "--tokens")], ids=" ".join)
def test_numbers_of_thousands_of_digits(minillm, runs, words):
    """Python refuses to read them; so does the command, in one line."""
    *command, option = words
    place = runs / "decoder" / ("tokenizer" if command[0] == "tokenizer" else "")
    assert len(one_line(minillm(*command, place, option, "1" * 5000))) < 6000


@pytest.mark.parametrize("name", ["train.seed", "train.max_steps", "model.width", "optim.warmup_steps"])
def test_whole_numbers_beyond_64_bits(minillm, text, tmp_path, name):
    words = ("pretrain", "--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run")
    assert f"--{name} must be below 2**63" in one_line(minillm(*words, f"--{name}", 10**30))


def test_prompt_longer_than_the_context(minillm, runs):
    """The prompt's length and the model's context are both named."""
    line = one_line(minillm("generate", runs / "decoder", "--prompt", "the cat sat on the mat " * 20))
    assert "context is 16" in line


def test_generate_with_an_encoder_and_fill_with_a_decoder(minillm, runs):
    """Each command says which one fits the model at hand."""
    assert "fill" in one_line(minillm("generate", runs / "encoder", "--prompt", "the"))
    assert "generate" in one_line(minillm("fill", runs / "decoder", "--text", "the [MASK]"))


def test_fill_without_a_mask(minillm, runs):
    """A text without [MASK] has nothing to fill."""
    assert "[MASK]" in one_line(minillm("fill", runs / "encoder", "--text", "the cat"))


@pytest.mark.parametrize("option", ["--top-k=0", "--top-p=1.5", "--temperature=-1", "--min-p=2", "--max-tokens=0"])
def test_sampling_out_of_range(minillm, runs, option):
    """A sampling setting outside of its range is named."""
    name = option.partition("=")[0].lstrip("-").replace("-", "_")
    assert name in one_line(minillm("generate", runs / "decoder", "--prompt", "the", option)).replace("-", "_")


def test_missing_tokenizer(minillm, runs, tmp_path):
    """A run folder without its tokenizer says so."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizer")
    assert "tokenizer" in one_line(minillm("generate", tmp_path / "run", "--prompt", "the"))


def test_checkpoint_of_another_architecture(minillm, runs, tmp_path):
    """Weights that do not fit config.json are refused by name."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    for path in tmp_path.glob("run/checkpoints/step-*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 32}))
        renew_manifest(path.parent)
    line = one_line(minillm("generate", tmp_path / "run", "--prompt", "the"))
    assert "model.safetensors" in line


def test_a_damaged_checkpoint(minillm, runs, tmp_path):
    """A truncated weights file is refused by name."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    for path in tmp_path.glob("run/checkpoints/step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in one_line(minillm("generate", tmp_path / "run", "--prompt", "the"))


def test_a_run_that_is_there_already_is_not_touched(minillm, runs, text):
    """--out on a finished run needs --overwrite or --resume; its checkpoints stay as they are."""
    before = {p: p.read_bytes() for p in (runs / "decoder").rglob("*") if p.is_file()}
    assert "--resume" in one_line(train(minillm, text, runs / "decoder"))
    assert {p: p.read_bytes() for p in (runs / "decoder").rglob("*") if p.is_file()} == before


def test_overwrite_removes_nothing_before_the_new_text_is_known_to_do(minillm, runs, text, tmp_path):
    """--overwrite with a text, setting or device that does not do: the run that was there stays, and still loads."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.txt").write_bytes(b"good so far \xff\xfe" * 50)
    assert "empty" in one_line(train(minillm, tmp_path / "empty.txt", tmp_path / "run", "--overwrite"))
    assert "UTF-8" in one_line(
        train(minillm, tmp_path / "picture.txt", tmp_path / "run", "--overwrite", tokenizer__kind="byte")
    )
    words = (
        "--preset",
        "tiny-decoder",
        "--data.input",
        text,
        "--out",
        tmp_path / "run",
        "--init",
        tmp_path / "nowhere",
    )
    assert "nowhere" in one_line(minillm("pretrain", *words, "--overwrite", "--quiet"))
    assert "vocab_size" in one_line(train(minillm, text, tmp_path / "run", "--overwrite", model__vocab_size=9))
    missing = "mps" if torch.cuda.is_available() else "cuda"
    assert missing in one_line(train(minillm, text, tmp_path / "run", "--overwrite", train__device=missing))
    for size in (10**13, 10**17):  # more than an address space, more than an int64 counts
        line = one_line(train(minillm, text, tmp_path / "run", "--overwrite", model__vocab_size=size))
        assert "does not fit into memory; lower model.width" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_compiling_without_a_compiler(text, tmp_path):
    """One line that says what is missing, and no run folder is left."""
    words = ("-m", "minillm", "pretrain", "--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run")
    nothing = {"PATH": str(tmp_path), "CXX": "g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = in_a_process(*words, *options(), "--train.compile", "true", "--quiet", environment=nothing)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == (
        "minillm: train.compile needs a C++ compiler, and none is here; install one, such as g++, or leave it out"
    )
    assert not (tmp_path / "run").exists()


def test_overwrite_takes_another_text(minillm, runs, text, tmp_path):
    """The digest of the old text does not stand in the way of a new run in its place."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    (tmp_path / "other.txt").write_text(text.read_text().replace("cat", "fox"))
    status, _, err = train(minillm, tmp_path / "other.txt", tmp_path / "run", "--overwrite")
    assert status == 0, err


def test_out_in_a_folder_with_other_things(minillm, text, tmp_path):
    """A folder that holds something else is not written into."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mine.txt").write_text("dear")
    assert "not empty" in one_line(train(minillm, text, tmp_path / "letters"))
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["mine.txt"]


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


def test_resume_refuses_another_model(minillm, runs):
    """The architecture of a run cannot change on resume."""
    line = one_line(minillm("pretrain", "--resume", runs / "decoder", "--model.width", "32"))
    assert "model.width" in line


@pytest.mark.parametrize("kept", [[], ["[model]", "context = 16"]], ids=["empty", "cut"])
def test_resume_with_a_config_that_has_lost_its_model(minillm, runs, tmp_path, kept):
    """The size of the vocabulary is among what is lost, and no model can be built without it."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    (tmp_path / "run/config.toml").write_text("\n".join(kept))
    line = one_line(minillm("pretrain", "--resume", tmp_path / "run", "--train.max_steps", 9))
    assert "is of another architecture: model." in line and "use the [model] section" in line


@pytest.mark.parametrize("rule, lines", [("stop", 1), ("go_on", 2)])
def test_full_disk(tmp_path, text, rule, lines):
    """No room for a checkpoint: status 2 in the end, one line for each of the two, and nothing half-written."""
    words = ["--train.on_failed_write", rule]
    words += ["--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run", "--quiet", *options()]
    done = in_a_process(
        "-c",
        "import resource, sys\n"
        "from minillm.cli import main\n"
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(['pretrain', *sys.argv[1:]]))",
        *words,
    )
    assert done.returncode == 2, done.stderr
    told = done.stderr.strip().splitlines()
    assert len(told) == lines and all("model.safetensors: File too large" in line for line in told), done.stderr
    assert not list(tmp_path.glob("run/checkpoints/*step-*"))


def files_of(run):
    """Return the content of every file in a folder, hidden ones too, but for the lock."""
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_overwrite_on_a_full_disk_loses_nothing(runs, tmp_path, text):
    """The new text does not fit while it is encoded: the old run is there, every byte, and nothing beside it."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    before = files_of(tmp_path / "run")
    (tmp_path / "long.txt").write_text(text.read_text() * 9)
    done = in_a_process(
        "-c",
        "import resource, signal, sys\n"
        "from minillm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "sys.exit(main(['pretrain', *sys.argv[1:]]))",
        *("--preset", "tiny-decoder", "--data.input", tmp_path / "long.txt", "--tokenizer.kind", "byte"),
        *("--out", tmp_path / "run", "--overwrite", "--quiet"),
    )
    assert done.returncode == 2 and "File too large" in done.stderr, done.stderr
    assert files_of(tmp_path / "run") == before


def test_overwrite_with_a_text_that_is_too_short_loses_nothing(minillm, runs, tmp_path):
    """A single letter has no next one, which is known only when it is encoded."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    before = files_of(tmp_path / "run")
    (tmp_path / "short.txt").write_text("a")
    line = one_line(train(minillm, tmp_path / "short.txt", tmp_path / "run", "--overwrite", tokenizer__kind="byte"))
    assert "short" in line or "longer" in line, line
    assert files_of(tmp_path / "run") == before


def test_full_disk_on_resume(runs, tmp_path):
    """Going on without room: one line, status 2, and config.toml keeps every byte, so that the run can go on later."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    before = (tmp_path / "run/config.toml").read_bytes()
    done = in_a_process(
        "-c",
        "import resource, signal, sys\n"
        "from minillm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "sys.exit(main(['pretrain', *sys.argv[1:]]))",
        *("--resume", tmp_path / "run", "--train.max_steps", 9, "--quiet"),
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "config.toml" in done.stderr, done.stderr
    assert (tmp_path / "run/config.toml").read_bytes() == before


def test_full_disk_while_shards_are_prepared(tmp_path, text):
    """`data prepare` without room: one line, status 2, and neither shards nor drafts of them."""
    (tmp_path / "long.txt").write_text(text.read_text() * 4)
    done = in_a_process(
        "-c",
        "import resource, signal, sys\n"
        "from minillm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "sys.exit(main(['data', 'prepare', *sys.argv[1:]]))",
        *("--data.input", tmp_path / "long.txt", "--out", tmp_path / "shards", "--kind", "byte", "--json"),
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("minillm: "), done.stderr
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("pretrain", "--preset", "tiny-decoder"), id="pretrain"),
        pytest.param(("data", "prepare"), id="data prepare"),
        pytest.param(("tokenizer", "train"), id="tokenizer train"),
    ],
)
def test_out_is_a_file(minillm, text, tmp_path, words):
    """--out names a file: it is named in turn, and stays what it was."""
    (tmp_path / "notes").write_text("mine")
    line = one_line(minillm(*words, "--data.input", text, "--out", tmp_path / "notes"))
    assert "notes" in line and "file" in line
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "words, place",
    [
        pytest.param(("data", "prepare"), ".", id="data prepare"),
        pytest.param(("tokenizer", "train"), "tokenizer", id="tokenizer train"),
    ],
)
def test_out_is_a_run_with_a_tokenizer(minillm, runs, text, tmp_path, words, place):
    """A run without its own tokenizer cannot be used any more."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    before = files_of(tmp_path / "run")
    line = one_line(minillm(*words, "--data.input", text, "--out", tmp_path / "run" / place))
    assert "run is a run, whose tokenizer would be replaced; choose another --out" in line
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    "content, hint",
    [(b"The cat\nA \xff dog\n", "not UTF-8 text: byte 10"), (b"\n\n", "no prompt"), (None, "prompts.txt")],
    ids=["not UTF-8", "empty", "missing"],
)
def test_prompts_file(minillm, runs, tmp_path, content, hint):
    """A file of prompts that cannot be read, or holds none, is named."""
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    line = one_line(minillm("generate", runs / "decoder", "--prompts", tmp_path / "prompts.txt"))
    assert hint in line and "prompts.txt" in line


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


@pytest.mark.parametrize("damage", ["missing", "unknown key", "no TOML"])
def test_run_folder_without_its_configuration(minillm, runs, tmp_path, damage):
    """evaluate and --resume need config.toml and name it; generate works without one that is only missing."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    config = tmp_path / "run/config.toml"
    if damage == "missing":
        config.unlink()
        assert minillm("generate", tmp_path / "run", "--prompt", "The", "--max-tokens", 2)[0] == 0
    else:
        config.write_text("[train]\nmax_step = 3\n" if damage == "unknown key" else "train = [")
        assert "config.toml" in one_line(minillm("generate", tmp_path / "run", "--prompt", "The"))
    assert "config.toml" in one_line(minillm("evaluate", tmp_path / "run"))
    assert "config.toml" in one_line(minillm("pretrain", "--resume", tmp_path / "run", "--quiet"))


def test_text_that_changed_under_a_run(minillm, tmp_path, text):
    """evaluate and --resume on another text than the run was begun with: its digest differs, nothing is done."""
    (tmp_path / "mine.txt").write_text(text.read_text())
    assert train(minillm, tmp_path / "mine.txt", tmp_path / "run")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "mine.txt").write_text(text.read_text() + "One more line.")
    assert "digest differs" in one_line(minillm("evaluate", tmp_path / "run"))
    assert "digest differs" in one_line(
        minillm("pretrain", "--resume", tmp_path / "run", "--train.max_steps", 9, "--quiet")
    )
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "words, hint", [(("--checkpoint", "7"), "no checkpoint of step 7"), (("--checkpoint", "newest"), "latest, best")]
)
def test_checkpoint_that_is_not_there(minillm, runs, words, hint):
    """A step without a checkpoint, or a word that is none, brings those that there are."""
    assert hint in one_line(minillm("generate", runs / "decoder", "--prompt", "The", *words))


@pytest.mark.parametrize("words", [("--tokens", "1 cat"), ("--tokens", "99999")])
def test_tokens_that_are_none(minillm, runs, words):
    """decode names the range of ids and what came."""
    line = one_line(minillm("tokenizer", "decode", runs / "decoder", *words))
    assert "0 to 299" in line and words[1].split()[-1] in line
