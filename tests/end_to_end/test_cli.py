"""The commands on two tiny runs: what they print, what they leave behind, and how fast help answers."""

import csv
import json
import os
import re
import shutil
import statistics
import time
from pathlib import Path

import pytest
from small_runs import in_a_process, options

PRETRAIN_KEYS = {"run", "steps", "tokens", "seconds", "tokens_per_second", "train_loss", "valid_loss"}


def last_json(out):
    """Return the JSON object on the last line of standard output, which holds nothing else."""
    (line,) = out.strip().splitlines()
    return json.loads(line)


def test_help_answers_in_half_a_second():
    """`minillm --help` imports nothing heavy: the median of five runs, Python's own start included."""
    seconds = []
    for _ in range(5):
        before = time.perf_counter()
        done = in_a_process("-m", "minillm", "--help")
        seconds.append(time.perf_counter() - before)
    assert done.returncode == 0 and "pretrain" in done.stdout
    assert statistics.median(seconds) < 0.5


def test_help_imports_no_torch():
    """The same by cause: help of every command leaves torch alone."""
    done = in_a_process(
        "-c",
        "import sys\nfrom minillm.cli import COMMANDS, main\nmain(['--help'])\n"
        "for name in COMMANDS:\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "    assert 'torch' not in sys.modules, name\n",
    )
    assert done.returncode == 0, done.stderr


BUFFERED = {"PYTHONUNBUFFERED": ""}  # as a shell has it: what is printed is written when the buffer is flushed


@pytest.mark.parametrize("words", [("--help",), ("pretrain", "--help"), ("kernels",)], ids=" ".join)
def test_a_reader_that_went_away(words):
    """`minillm ... | true`: status 0 and not a word."""
    reader, writer = os.pipe()
    os.close(reader)
    done = in_a_process("-m", "minillm", *words, stdout=writer, environment=BUFFERED)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_on_a_full_disk():
    """`minillm --help > /dev/full`: one line and status 2."""
    with open("/dev/full", "w") as full:
        done = in_a_process("-m", "minillm", "--help", stdout=full, environment=BUFFERED)
    assert (done.returncode, done.stderr) == (2, "minillm: writing: the disk is full; free some space and run again\n")


def closed(number, *words):
    """Run minillm with one of its three streams closed, as `>&-` does."""
    words = ["-m", "minillm", *map(str, words)]
    program = f"import os, sys; os.close({number}); os.execv(sys.executable, [sys.executable, *{words!r}])"
    return in_a_process("-c", program)


@pytest.mark.parametrize("words", [("--help",), ("kernels",), ("kernels", "--json")], ids=" ".join)
def test_output_that_is_closed(words):
    """`minillm ... >&-`: status 0 and not a word."""
    done = closed(1, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_that_nobody_reads_are_no_part_of_the_output():
    """`minillm ... 2>&-`: what Python prints to no stream goes to standard output."""
    done = closed(2, "kernels", "--json", "--nonsense")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_terminal_that_lacks_a_letter(runs):
    """An ASCII stream gets escapes, in text and in JSON, in place of an exception."""
    words = ("-m", "minillm", "generate", runs / "decoder", "--prompt", "caf\u00e9", "--max-tokens", 1)
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = in_a_process(*words, environment=ascii_only)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(r"caf\xe9")
    done = in_a_process(*words, "--json", environment=ascii_only)
    assert last_json(done.stdout)["results"][0]["prompt"] == "caf\u00e9"


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_run_folder_holds_what_it_should(runs, kind):
    """Configuration, tokenizer, CSVs without and with clock readings, plots, checkpoints and markers."""
    run = runs / kind
    for name in (
        "config.toml",
        "metrics.csv",
        "timing.csv",
        "loss.png",
        "tokenizer",
        "checkpoints/latest",
        "checkpoints/best",
    ):
        assert (run / name).exists(), name
    latest = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    assert latest.name == "step-000006"
    assert {"model.safetensors", "config.json"} <= {p.name for p in latest.iterdir()}
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(r["valid_loss"]) for r in rows] == [False, False, True, False, False, True]
    assert "seconds" not in rows[0]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_same_seed_same_run(minillm, runs, text, tmp_path, kind):
    """A second run from one seed has the same weights and metrics, bit for bit; another seed does not."""
    for seed in (0, 1):
        words = ("--preset", f"tiny-{kind}", "--data.input", text, "--out", tmp_path / str(seed), "--quiet")
        assert minillm("pretrain", *words, *options(train__seed=seed))[0] == 0
    for name in ("metrics.csv", "checkpoints/step-000006/model.safetensors"):
        original = (runs / kind / name).read_bytes()
        assert (tmp_path / "0" / name).read_bytes() == original
        assert (tmp_path / "1" / name).read_bytes() != original


def test_logging_and_evaluation_change_nothing(minillm, runs, text, tmp_path):
    """Weights are the same whatever is logged, evaluated and saved on the way."""
    words = ("--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run", "--quiet")
    settings = options(train__eval_every=0, train__checkpoint_every=0, train__log_every=5)
    assert minillm("pretrain", *words, *settings)[0] == 0
    name = "checkpoints/step-000006/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (runs / "decoder" / name).read_bytes()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_resume_ends_where_an_unbroken_run_ends(minillm, runs, text, tmp_path, kind):
    """Stopped after 3 of 6 steps and resumed: the same weights and metrics, bit for bit."""
    words = ("--preset", f"tiny-{kind}", "--data.input", text, "--out", tmp_path / "run", "--quiet")
    constant = {"optim__schedule": "constant", "optim__warmup_steps": 2}
    assert minillm("pretrain", *words, *options(train__max_steps=3, **constant))[0] == 0
    assert minillm("pretrain", "--resume", tmp_path / "run", "--train.max_steps", 6, "--quiet")[0] == 0
    words = (*words[:5], tmp_path / "whole", "--quiet")
    assert minillm("pretrain", *words, *options(**constant))[0] == 0
    for name in ("metrics.csv", "checkpoints/step-000006/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_init_begins_with_the_weights_of_another_run(minillm, runs, text, tmp_path):
    """--init takes weights, architecture and tokenizer: at a vanishing learning rate they stay as they were."""
    words = ("--init", runs / "decoder", "--data.input", text, "--out", tmp_path / "run", "--quiet", "--json")
    settings = ("--optim.learning_rate", "1e-30", "--optim.adamw_learning_rate", "1e-30", "--optim.weight_decay", "0")
    status, out, err = minillm("pretrain", *words, *settings, "--train.max_steps", "2")
    assert status == 0, err
    weights = "checkpoints/step-00000{}/model.safetensors"
    assert (tmp_path / "run" / weights.format(2)).read_bytes() == (runs / "decoder" / weights.format(6)).read_bytes()
    assert (tmp_path / "run/config.toml").read_text() != ""


def test_json_of_pretrain(minillm, text, tmp_path):
    """--json prints one object, last, with the contract's keys; the rest goes to standard error."""
    words = ("--preset", "tiny-decoder", "--data.input", text, "--out", tmp_path / "run", "--json")
    status, out, _ = minillm("pretrain", *words, *options())
    result = last_json(out)
    assert status == 0 and result.keys() >= PRETRAIN_KEYS
    assert result["steps"] == 6 and result["tokens"] == 6 * 4 * 16
    assert result["valid_loss"] > 0


def test_generate(minillm, runs):
    """One prompt streams; several come with headings; --json holds the same texts; a seed repeats itself."""
    status, streamed, _ = minillm("generate", runs / "decoder", "--prompt", "The cat", "--max-tokens", 8)
    assert status == 0 and streamed.startswith("The cat")
    status, out, _ = minillm("generate", runs / "decoder", "--prompt", "The cat", "--max-tokens", 8, "--json")
    (result,) = last_json(out)["results"]
    assert streamed == f"The cat{result['text']}\n"
    status, out, _ = minillm("generate", runs / "decoder", "--prompt", "The", "--prompt", "A dog", "--max-tokens", 3)
    assert status == 0 and out.count("---") == 2


def test_generate_without_a_cache_gives_the_same(minillm, runs):
    """--no-cache recomputes everything and writes the same text."""
    words = ("generate", runs / "decoder", "--prompt", "The", "--max-tokens", 10)
    assert minillm(*words) == minillm(*words, "--no-cache")


def test_fill(minillm, runs):
    """Every mask gets its candidates, most likely first."""
    status, out, _ = minillm("fill", runs / "encoder", "--text", "The [MASK] sat by [MASK].", "--top-k", 3, "--json")
    masks = last_json(out)["masks"]
    assert status == 0 and [len(m) for m in masks] == [3, 3]
    assert all(m[0]["probability"] >= m[1]["probability"] for m in masks)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_evaluate(minillm, runs, text, kind):
    """The contract's keys, the anchors on the same text, and the figures that pretraining ended with."""
    status, out, _ = minillm("evaluate", runs / kind, "--json")
    result = last_json(out)
    assert status == 0
    assert result.keys() >= {"loss", "perplexity", "bits_per_byte", "masked_accuracy", "anchors"}
    assert (result["bits_per_byte"] is None) == (kind == "encoder") == (result["masked_accuracy"] is not None)
    assert {"uniform", "unigram"} <= {a["name"] for a in result["anchors"]}
    status, table, _ = minillm("evaluate", runs / kind)
    assert "this model" in table and "beats" in table
    status, out, _ = minillm("evaluate", runs / kind, "--data.input", text, "--json")
    assert status == 0 and last_json(out)["loss"] > 0


def test_evaluate_goes_by_the_model_that_is_there(minillm, runs, tmp_path):
    """Not by what somebody has made of it in config.toml since."""
    shutil.copytree(runs / "decoder", tmp_path / "run")
    path = tmp_path / "run/config.toml"
    path.write_text(re.sub(r"(?m)^context = .*", "context = 1000", path.read_text()))
    figures = [last_json(minillm("evaluate", run, "--json")[1]) for run in (runs / "decoder", tmp_path / "run")]
    assert figures[0] | {"run": ""} == figures[1] | {"run": ""}


def test_tokenizer(minillm, text, tmp_path):
    """Train, encode and decode: the text comes back."""
    status, _, err = minillm("tokenizer", "train", "--data.input", text, "--out", tmp_path / "t", "--vocab_size", 20)
    assert status == 0, err
    assert "the text needs at least" in err and "not tokenizer.vocab_size = 20" in err
    status, out, _ = minillm("tokenizer", "encode", tmp_path / "t", "--text", "The cat  sat.", "--json")
    tokens = last_json(out)["tokens"]
    status, out, _ = minillm("tokenizer", "decode", tmp_path / "t", "--tokens", " ".join(map(str, tokens)))
    assert status == 0 and out == "The cat  sat.\n"


def test_data(minillm, text, tmp_path):
    """`data show` tells what a corpus holds; `data prepare` writes shards that a run can take."""
    status, out, _ = minillm("data", "show", "--data.input", text, "--json")
    shown = last_json(out)
    assert status == 0 and shown["bytes"]["train"] + shown["bytes"]["valid"] == text.stat().st_size
    status, out, err = minillm("data", "prepare", "--data.input", text, "--out", tmp_path / "d", "--vocab_size", 300)
    assert status == 0, err


def test_kernels(minillm):
    """Every op with its backend and the reason."""
    status, out, _ = minillm("kernels", "--json")
    assert status == 0
    assert {"attention", "rms_norm", "linear_cross_entropy"} <= {op["op"] for op in last_json(out)["ops"]}
