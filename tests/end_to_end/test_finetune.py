"""`finetune` and `predict` from the command line: tables in, figures and labels out; wrong input in one line."""

import csv
import io
import json
import random
import re

import pytest
from small_runs import one_line

FIGURES = {"accuracy", "macro_f1", "mcc", "loss"}
SIDES = {"good": ("mat", "fire"), "bad": ("rain", "window")}
QUICK = {
    "train.batch_size": 8,
    "train.max_steps": 4,
    "train.eval_every": 2,
    "train.device": "cpu",
    "optim.learning_rate": 0.01,
}


def rows_of(count, seed):
    draw = random.Random(seed)
    return [
        (f"the {draw.choice(SIDES[label])} {n}", label) for n in range(count) for label in (("good", "bad")[n % 2],)
    ]


def write(path, rows, header=True):
    """Write rows as the path's suffix says."""
    lines = [("text", "label"), *rows] if header else rows
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(lines)
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    return {
        "train": write(folder / "train.tsv", rows_of(32, 0), header=False),  # no header
        "valid": write(folder / "valid.csv", rows_of(12, 1)),
        "test": write(folder / "test.jsonl", rows_of(10, 2)),
    }


def words_of(runs, tables, out, *more, **settings):
    """Return the words of a small run."""
    options = [
        w for k, v in (QUICK | {k.replace("__", "."): v for k, v in settings.items()}).items() for w in (f"--{k}", v)
    ]
    files = [w for name, path in tables.items() for w in (f"--{name}", path)]
    return ("finetune", runs / "encoder", *files, "--out", out, "--quiet", *options, *more)


@pytest.fixture(scope="module")
def learnt(runs, tables, tmp_path_factory):
    """A run that has learnt its task, and its JSON."""
    import contextlib

    from minillm import cli

    out = tmp_path_factory.mktemp("learnt") / "run"
    words = words_of(runs, tables, out, "--json", train__max_steps=60, train__eval_every=20)
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        assert cli.main([str(word) for word in words]) == 0
    return out, json.loads(stream.getvalue())


def test_json_of_finetune(learnt):
    """The contract's keys, and a task that is learnt; three kinds of files, one of them without a header."""
    run, table = learnt
    assert table.keys() >= {"run", "steps", "examples_per_second", "valid", "test", "baselines"}
    assert FIGURES <= table["valid"].keys() and FIGURES <= table["test"].keys()
    assert FIGURES <= table["baselines"]["majority"]["test"].keys() and "tfidf" in table["baselines"]
    assert table["test"]["accuracy"] > 0.9 and (run / "report/report.md").exists()


def test_predict_takes_texts_files_and_standard_input(minillm, learnt, tmp_path, monkeypatch):
    """One object a line, the same from each of them."""
    run, _ = learnt
    texts = ["the mat 3", "the rain 4"]
    status, out, err = minillm("predict", run, "--text", texts[0], "--text", texts[1])
    answers = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "") and [answer["label"] for answer in answers] == ["good", "bad"]
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert minillm("predict", run, "--input", tmp_path / "a.txt", "--json") == (0, out, "")
    table = write(tmp_path / "b.csv", [(text, "unknown") for text in texts])
    assert minillm("predict", run, "--input", table) == (0, out, "")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    assert minillm("predict", run) == (0, out, "")


def test_settings_come_from_a_file_and_options(minillm, runs, tables, tmp_path):
    """The options win; the run folder keeps all of them, with every number of steps."""
    (tmp_path / "some.toml").write_text('[train]\nmax_steps = 9\nlog_every = 7\n[adapter]\nkind = "lora"\nrank = 2\n')
    words = words_of(runs, tables, tmp_path / "run", "--config", tmp_path / "some.toml", train__max_steps=2)
    assert minillm(*words)[0] == 0
    kept = (tmp_path / "run/config.toml").read_text()
    assert "max_steps = 2" in kept and "log_every = 7" in kept and "rank = 2" in kept


def test_pairs_are_read_side_by_side(minillm, runs, tables, tmp_path, monkeypatch):
    """With a column of second texts; predict takes --pair, and on standard input a tab."""
    for name in ("train", "valid"):
        rows = [(text, f"and {label}", label) for text, label in rows_of(16, 3)]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sentence1", "sentence2", "label"), *rows])
    pairs = {name: tmp_path / f"{name}.csv" for name in ("train", "valid")}
    assert minillm(*words_of(runs, pairs, tmp_path / "run"))[0] == 0
    status, out, _ = minillm("predict", tmp_path / "run", "--text", "the mat", "--pair", "and good")
    assert status == 0 and json.loads(out)["label"] in SIDES
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the mat\tand good\n")))
    assert minillm("predict", tmp_path / "run")[:2] == (0, out)
    assert "two texts" in one_line(minillm("predict", tmp_path / "run", "--text", "the mat"))


def test_what_predict_does_not_read_is_said(minillm, learnt):
    """On standard error: whoever reads the answers alone gets them as ever."""
    run, _ = learnt
    status, out, err = minillm("predict", run, "--text", "the mat", "--text", "the cat sat on the mat " * 20)
    assert status == 0 and len(out.splitlines()) == 2
    assert re.fullmatch(r"1 of 2 rows do not fit 16 tokens: \d+ tokens were not read\n", err)


def test_a_second_text_that_nothing_would_read(minillm, learnt):
    """It is not left out in silence: who gives one thinks that it counts."""
    run, _ = learnt
    assert "leave out --pair" in one_line(minillm("predict", run, "--text", "the mat", "--pair", "and good"))


def test_a_preset_learns_from_nothing(minillm, tables, tmp_path):
    """No pretrained run: the tokenizer comes from the training texts."""
    words = [str(w) for w in words_of(tmp_path, tables, tmp_path / "run", "--json", train__max_steps=2)]
    status, out, err = minillm("finetune", "--preset", "tiny-encoder", *words[2:])
    assert status == 0, err
    assert json.loads(out)["valid"].keys() >= FIGURES and (tmp_path / "run/tokenizer").is_dir()


def test_resume_goes_on_after_the_last_checkpoint(minillm, runs, tables, tmp_path):
    """More steps than it was begun with; what cannot change is named."""
    assert minillm(*words_of(runs, tables, tmp_path / "run", optim__schedule="constant"))[0] == 0
    status, out, err = minillm("finetune", "--resume", tmp_path / "run", "--train.max_steps", 6, "--quiet", "--json")
    assert status == 0 and json.loads(out)["steps"] == 6, err
    line = one_line(minillm("finetune", "--resume", tmp_path / "run", "--head.pooling", "cls"))
    assert "head.pooling cannot change" in line
    assert "leave out RUN" in one_line(minillm("finetune", runs / "encoder", "--resume", tmp_path / "run"))
    assert "pretraining run" in one_line(minillm("finetune", "--resume", runs / "encoder"))


def test_a_fine_tuned_run_is_not_for_other_commands(minillm, learnt, runs):
    """Each says which one is."""
    run, _ = learnt
    assert "minillm predict" in one_line(minillm("fill", run, "--text", "the [MASK]"))
    assert "minillm finetune" in one_line(minillm("predict", runs / "encoder", "--text", "the cat"))


BROKEN = [
    pytest.param(lambda p: p.write_text("words,grade\na,1\nb,0\n"), {}, ["words, grade", "data.header"], id="header"),
    pytest.param(lambda p: p.write_text("text,grade\na,1\nb,0\n"), {}, ["text, grade", "label_column"], id="columns"),
    pytest.param(lambda p: p.write_text("text,label\na,1\nb,1\n"), {}, ["one class only"], id="one-class"),
    pytest.param(lambda p: p.write_text("text,label\na,1\n ,0\nc,0\n"), {}, ["line 3", "empty"], id="empty-text"),
    pytest.param(lambda p: p.write_text('text,label\na,1\n"b,0\n'), {}, ["line 3", "quoting"], id="quoting"),
    pytest.param(lambda p: p.write_bytes(b"text,label\na,1\n\xff\xfe,0\n"), {}, ["line 3", "UTF-8"], id="encoding"),
    pytest.param(lambda p: p.write_text("text,label\n" + "a" * (2**24 + 9)), {}, ["line 2", "16 MiB"], id="long-line"),
    pytest.param(lambda p: p.write_text("text,label\na,1\nb,0\n"), {}, ["valid.csv", "no label of"], id="unseen"),
    pytest.param(lambda p: None, {}, ["no file", "broken.csv"], id="missing"),
    pytest.param(lambda p: None, {"text__max_length": 99}, ["text.max_length (99)", "16"], id="context"),
    pytest.param(lambda p: None, {"head__pooling": "first"}, ["head.pooling takes one of"], id="pooling"),
    pytest.param(lambda p: None, {"train__epochs": -1}, ["train.epochs must be above 0"], id="epochs"),
    pytest.param(lambda p: None, {"seeds": 2, "train__seed": 2**63 - 1}, ["2 seeds", "below 2**63"], id="seeds"),
    pytest.param(lambda p: None, {"task__name": "multi_label", "task__label_separator": ""},
                 ["task.label_separator must not be empty"], id="separator"),
    pytest.param(lambda p: None, {"scope__top_layers": 5}, ["top_layers is 5", "1 layers"], id="layers"),
    pytest.param(lambda p: None, {"adapter__kind": "prefix", "adapter__length": 10**13},
                 ["the adapter does not fit into memory; lower adapter.rank"], id="adapter"),
    pytest.param(lambda p: None, {"adapter__kind": "lora", "scope__top_layers": 0}, ["scope.top_layers"], id="scope"),
    pytest.param(lambda p: None, {"augmentation__share": 1, "text__long_texts": "windows", "text__overlap": 1},
                 ["augmentation.share"], id="augmentation"),
]  # fmt: skip


@pytest.mark.parametrize("spoil, settings, hints", BROKEN)
def test_wrong_input_is_one_line_and_leaves_nothing(minillm, runs, tables, tmp_path, spoil, settings, hints):
    path = tmp_path / "broken.csv"
    spoil(path)
    chosen = tables if settings else tables | {"train": path}
    line = one_line(minillm(*words_of(runs, chosen, tmp_path / "run", **settings)))
    assert all(hint in line for hint in hints), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, hint",
    [
        (("finetune",), "minillm finetune needs RUN"),
        (("finetune", "nowhere"), "needs --train"),
        (("finetune", "nowhere", "--train", "a.csv"), "needs --valid"),
        (("finetune", "nowhere", "--train", "a.csv", "--valid", "b.csv"), "no run folder nowhere"),
        (("finetune", "a", "--preset", "b", "--train", "a.csv", "--valid", "b.csv"), "one of RUN and --preset"),
        (("finetune", "--preset", "tiny-encodr", "--train", "a.csv", "--valid", "b.csv"), "tiny-encoder"),
        (("finetune", "nowhere", "--trian", "a.csv"), "--train"),
        (("predict", "nowhere", "--text", "a"), "no run folder nowhere"),
        (("predict", "nowhere", "--text", "a", "--input", "b.csv"), "one of --text and --input"),
        (("predict", "nowhere", "--text", "a", "--pair", "b", "--pair", "c"), "--pair stands 2 times, --text 1 times"),
    ],
)
def test_wrong_words(minillm, words, hint):
    assert hint in one_line(minillm(*words))


def test_empty_texts_of_predict(minillm, learnt, tmp_path, monkeypatch):
    """A blank line has no answer, and leaving it out would shift all others: it is named."""
    run, _ = learnt
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the mat\n\nthe rain\n")))
    assert "standard input line 2: text is empty" in one_line(minillm("predict", run))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "standard input has no text" in one_line(minillm("predict", run))
