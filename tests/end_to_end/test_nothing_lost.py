"""A command that cannot do what it shall: what stood in its place is there, every byte, and nothing half-written."""

import pytest
import torch
from small_runs import files_of, on_a_full_disk, one_line, options, train


def test_a_run_that_is_there_already_is_not_touched(minillm, runs, text):
    """--out on a finished run needs --overwrite or --resume; its checkpoints stay as they are."""
    before = files_of(runs / "decoder")
    assert "--resume" in one_line(train(minillm, text, runs / "decoder"))
    assert files_of(runs / "decoder") == before


def test_overwrite_removes_nothing_before_the_new_text_is_known_to_do(minillm, run, text, tmp_path):
    """--overwrite with a text, setting or device that does not do: the run that was there stays, and still loads."""
    before = files_of(run)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.txt").write_bytes(b"good so far \xff\xfe" * 50)
    assert "empty" in one_line(train(minillm, tmp_path / "empty.txt", run, "--overwrite"))
    assert "UTF-8" in one_line(train(minillm, tmp_path / "picture.txt", run, "--overwrite", tokenizer__kind="byte"))
    words = ("--preset", "tiny-decoder", "--data.input", text, "--out", run, "--init", tmp_path / "nowhere")
    assert "nowhere" in one_line(minillm("pretrain", *words, "--overwrite", "--quiet"))
    assert "vocab_size" in one_line(train(minillm, text, run, "--overwrite", model__vocab_size=9))
    missing = "mps" if torch.cuda.is_available() else "cuda"
    assert missing in one_line(train(minillm, text, run, "--overwrite", train__device=missing))
    for size in (10**13, 10**17):  # more than an address space, more than an int64 counts
        line = one_line(train(minillm, text, run, "--overwrite", model__vocab_size=size))
        assert "does not fit into memory; lower model.width" in line
    assert files_of(run) == before


def test_overwrite_with_a_text_that_is_too_short_loses_nothing(minillm, run, tmp_path):
    """A single letter has no next one, which is known only when it is encoded."""
    before = files_of(run)
    (tmp_path / "short.txt").write_text("a")
    line = one_line(train(minillm, tmp_path / "short.txt", run, "--overwrite", tokenizer__kind="byte"))
    assert "short" in line or "longer" in line, line
    assert files_of(run) == before


def test_overwrite_takes_another_text(minillm, run, text, tmp_path):
    """The digest of the old text does not stand in the way of a new run in its place."""
    (tmp_path / "other.txt").write_text(text.read_text().replace("cat", "fox"))
    status, _, err = train(minillm, tmp_path / "other.txt", run, "--overwrite")
    assert status == 0, err


def test_out_in_a_folder_with_other_things(minillm, text, tmp_path):
    """A folder that holds something else is not written into."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mine.txt").write_text("dear")
    assert "not empty" in one_line(train(minillm, text, tmp_path / "letters"))
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["mine.txt"]


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
def test_out_is_a_run_with_a_tokenizer(minillm, run, text, words, place):
    """A run without its own tokenizer cannot be used any more."""
    before = files_of(run)
    line = one_line(minillm(*words, "--data.input", text, "--out", run / place))
    assert "run is a run, whose tokenizer would be replaced; choose another --out" in line
    assert files_of(run) == before


@pytest.mark.parametrize("rule, lines", [("stop", 1), ("go_on", 2)])
def test_full_disk(tmp_path, text, rule, lines):
    """No room for a checkpoint: status 2 in the end, one line for each of the two, and nothing half-written."""
    words = ["pretrain", "--train.on_failed_write", rule]
    words += ["--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run", "--quiet", *options()]
    done = on_a_full_disk(20_000, *words)
    assert done.returncode == 2, done.stderr
    told = done.stderr.strip().splitlines()
    assert len(told) == lines and all("model.safetensors: File too large" in line for line in told), done.stderr
    assert not list(tmp_path.glob("run/checkpoints/*step-*"))


def test_full_disk_on_resume(run):
    """Going on without room: one line, status 2, and config.toml keeps every byte, so that the run can go on later."""
    before = (run / "config.toml").read_bytes()
    done = on_a_full_disk(100, "pretrain", "--resume", run, "--train.max_steps", 9, "--quiet")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "config.toml" in done.stderr, done.stderr
    assert (run / "config.toml").read_bytes() == before


def test_overwrite_on_a_full_disk_loses_nothing(run, tmp_path, text):
    """The new text does not fit while it is encoded: the old run is there, every byte, and nothing beside it."""
    before = files_of(run)
    (tmp_path / "long.txt").write_text(text.read_text() * 9)
    done = on_a_full_disk(
        30_000,
        *("pretrain", "--preset", "tiny-decoder", "--data.input", tmp_path / "long.txt", "--tokenizer.kind", "byte"),
        *("--out", run, "--overwrite", "--quiet"),
    )
    assert done.returncode == 2 and "File too large" in done.stderr, done.stderr
    assert files_of(run) == before


def test_full_disk_while_shards_are_prepared(tmp_path, text):
    """`data prepare` without room: one line, status 2, and neither shards nor drafts of them."""
    (tmp_path / "long.txt").write_text(text.read_text() * 4)
    done = on_a_full_disk(
        10_000,
        *("data", "prepare", "--data.input", tmp_path / "long.txt", "--out", tmp_path / "shards"),
        *("--kind", "byte", "--json"),
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("minillm: "), done.stderr
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["tokenizer"]
