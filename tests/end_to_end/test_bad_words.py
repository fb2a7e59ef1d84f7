"""Wrong words: one clear line on standard error, exit status 2, and nothing half-written."""

import pytest
from small_runs import in_a_process, one_line, options, train


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


def test_an_unknown_corpus_names_the_nearest(minillm, tmp_path):
    """A mistyped name of an embedded corpus brings the right one."""
    assert "stdlib-docs" in one_line(train(minillm, "stdlib-doc", tmp_path / "run"))


def test_a_missing_file(minillm, tmp_path):
    """A path that is not there is named."""
    line = one_line(train(minillm, tmp_path / "nowhere.txt", tmp_path / "run"))
    assert "nowhere.txt" in line
    assert not (tmp_path / "run").exists()


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


def test_prompt_longer_than_the_context(minillm, runs):
    """The prompt's length and the model's context are both named."""
    line = one_line(minillm("generate", runs / "decoder", "--prompt", "the cat sat on the mat " * 20))
    assert "context is 16" in line


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


@pytest.mark.parametrize("option", ["--top-k=0", "--top-p=1.5", "--temperature=-1", "--min-p=2", "--max-tokens=0"])
def test_sampling_out_of_range(minillm, runs, option):
    """A sampling setting outside of its range is named."""
    name = option.partition("=")[0].lstrip("-").replace("-", "_")
    assert name in one_line(minillm("generate", runs / "decoder", "--prompt", "the", option)).replace("-", "_")


def test_generate_with_an_encoder_and_fill_with_a_decoder(minillm, runs):
    """Each command says which one fits the model at hand."""
    assert "fill" in one_line(minillm("generate", runs / "encoder", "--prompt", "the"))
    assert "generate" in one_line(minillm("fill", runs / "decoder", "--text", "the [MASK]"))


def test_fill_without_a_mask(minillm, runs):
    """A text without [MASK] has nothing to fill."""
    assert "[MASK]" in one_line(minillm("fill", runs / "encoder", "--text", "the cat"))


@pytest.mark.parametrize("words", [("--tokens", "1 cat"), ("--tokens", "99999")])
def test_tokens_that_are_none(minillm, runs, words):
    """decode names the range of ids and what came."""
    line = one_line(minillm("tokenizer", "decode", runs / "decoder", *words))
    assert "0 to 299" in line and words[1].split()[-1] in line


@pytest.mark.parametrize(
    "words, hint", [(("--checkpoint", "7"), "no checkpoint of step 7"), (("--checkpoint", "newest"), "latest, best")]
)
def test_checkpoint_that_is_not_there(minillm, runs, words, hint):
    """A step without a checkpoint, or a word that is none, brings those that there are."""
    assert hint in one_line(minillm("generate", runs / "decoder", "--prompt", "The", *words))
