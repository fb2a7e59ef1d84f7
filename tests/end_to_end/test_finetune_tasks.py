"""Tagging, question answering and prompts from the command line: tables in, figures and answers out."""

import contextlib
import io
import json
import re

import pytest
from small_runs import one_line

from minillm import cli
from minillm.config import build, read_toml
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.material import gather
from minillm.finetune.predict import load_finetuned
from minillm.training.progress import Progress

PETS, PLACES = ("cat1", "cat4", "dog"), ("mat", "door", "window", "fire")
SUFFIX = {"tagging": "conll", "question_answering": "json", "prompt_answer": "jsonl"}
KIND = {"tagging": "encoder", "question_answering": "encoder", "prompt_answer": "decoder"}
LEARNING_RATE = {"tagging": 1e-2, "question_answering": 1e-2, "prompt_answer": 2e-2}
SETTINGS = {
    "backbone.dropout": 0,
    "head.dropout": 0,
    "task.exact_match": "true",
    "task.max_new_tokens": 12,
    "train.batch_size": 8,
    "train.max_steps": 120,
    "train.eval_every": 60,
    "train.device": "cpu",
    "train.compute_dtype": "float32",  # as `predict` computes
}


def sentence(n):
    return f"The {PETS[n % 3]} sat by the {PLACES[n % 4]} ."


def conll(count):
    """Each sentence has a pet and a place, tagged as IOB1 does."""
    tags = {pet: "I-PET" for pet in PETS} | {place: "I-PLACE" for place in PLACES}
    return "\n\n".join(
        "\n".join(f"{word}\t{tags.get(word, 'O')}" for word in sentence(n).split()) for n in range(count)
    )


def squad(count):
    """Each sentence has a question with an answer, and one without."""
    paragraphs = []
    for n in range(count):
        answer = {"text": PETS[n % 3], "answer_start": sentence(n).index(PETS[n % 3])}
        asked = [{"question": "Who sat?", "answers": [answer]}, {"question": "Who flew?", "answers": []}]
        paragraphs.append({"context": sentence(n), "qas": asked})
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def prompts(count):
    """A number asks for a place."""
    return "".join(json.dumps({"prompt": f"{n % 4}", "answer": PLACES[n % 4]}) + "\n" for n in range(count))


WRITE = {"tagging": conll, "question_answering": squad, "prompt_answer": prompts}


def words_of(runs, folder, task, **settings):
    """Return the words that fine-tune the tiny run of the task's kind on the tables in a folder."""
    own = {"task.name": task, "optim.learning_rate": LEARNING_RATE[task]}
    given = SETTINGS | own | {name.replace("__", "."): value for name, value in settings.items()}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    tables = [f"--{name}={folder}/{name}.{SUFFIX[task]}" for name in ("train", "valid")]
    return ["finetune", str(runs / KIND[task]), *tables, "--out", str(folder / "run"), "--json", "--quiet", *options]


def write_tables(folder, task):
    for name, count in (("train", 24), ("valid", 12)):
        (folder / f"{name}.{SUFFIX[task]}").write_text(WRITE[task](count), encoding="utf-8")


@pytest.fixture(scope="module")
def learnt(runs, tmp_path_factory):
    """Return a function: task -> (folder of its tables and its run, what `--json` printed), made once."""
    made = {}

    def fine_tuned(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            write_tables(folder, task)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert cli.main(words_of(runs, folder, task)) == 0
            made[task] = folder, json.loads(printed.getvalue())
        return made[task]

    return fine_tuned


def answers(minillm, *words):
    """Return what `minillm predict` prints, after checking that nothing but what was cut is said beside it."""
    status, out, err = minillm("predict", *words)
    assert status == 0 and re.fullmatch(r"(.* tokens were not read\n)?", err)
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    "task, figures",
    [
        ("tagging", {"accuracy", "f1", "precision", "recall", "macro_f1"}),
        ("question_answering", {"exact", "f1", "no_answer", "best_f1", "best_threshold"}),
        ("prompt_answer", {"perplexity", "exact_match"}),
    ],
)
def test_a_table_is_learnt(learnt, task, figures):
    """Tiny models know it all after a few seconds; the best checkpoint, loaded anew, has the figures that were told."""
    folder, told = learnt(task)
    valid = told["valid"]
    assert set(valid) == {"loss", *figures}
    assert all(valid[name] == 1.0 for name in figures & {"accuracy", "f1", "exact", "no_answer", "exact_match"})
    loaded = load_finetuned(folder / "run")
    simple = {"tagging": {"most frequent tag"}}.get(task, set())
    assert set(told["baselines"]) == simple and (folder / "run/report/report.md").exists()
    config = build(FinetuneConfig, read_toml(folder / "run/config.toml"))
    (model,) = loaded.models
    material = gather(config, loaded.tokenizer, model.config.backbone, Progress(quiet=True))
    assert material.figures(model, "valid") == pytest.approx(valid)


def test_tags_of_texts_and_files(minillm, learnt, tmp_path):
    """Entities are told with their places, of a text as it is and of words from a file."""
    folder, _ = learnt("tagging")
    (answer,) = answers(minillm, folder / "run", "--text", "The dog sat by the fire.")
    assert [(e["type"], e["text"], e["start"], e["stop"]) for e in answer["entities"]] == [
        ("PET", "dog", 4, 7),
        ("PLACE", "fire", 19, 23),
    ]
    (tmp_path / "words.conll").write_text("The\ncat1\nsat\n\nthe\nmat\n")
    first, second = answers(minillm, folder / "run", "--input", tmp_path / "words.conll")
    assert first["words"] == ["The", "cat1", "sat"] and first["tags"] == ["O", "B-PET", "O"]
    assert second["text"] == "the mat" and len(second["tags"]) == 2


def test_answers_to_questions(minillm, learnt, tmp_path):
    """From words of the command line and from a file; the threshold can be another than the run's."""
    folder, _ = learnt("question_answering")
    asked = ["--text", "Who sat?", "--pair", sentence(5), "--text", "Who flew?", "--pair", sentence(5)]
    who, none = answers(minillm, folder / "run", *asked, "--task.candidates", "2")
    assert who["answer"] == "dog" and sentence(5)[who["start"] : who["stop"]] == "dog"
    assert (none["answer"], none["start"]) == ("", None) and len(who["candidates"]) == len(none["candidates"]) == 2
    _, forced = answers(minillm, folder / "run", *asked, "--task.no_answer_threshold", "1000")
    assert forced["answer"] == forced["candidates"][0]["text"] != ""
    found = answers(minillm, folder / "run", "--input", folder / "valid.json")
    assert [row["answer"] for row in found[:4]] == [PETS[0], "", PETS[1], ""]


def test_answers_to_prompts(minillm, learnt):
    """Written until the end that the model itself sets, or as many tokens as are asked for."""
    folder, _ = learnt("prompt_answer")
    found = answers(minillm, folder / "run", "--text", "3", "--text", "0")
    assert [(row["answer"], row["stop"]) for row in found] == [("fire", "eos"), ("mat", "eos")]
    (short,) = answers(minillm, folder / "run", "--text", "2", "--task.max_new_tokens", "1")
    assert short["stop"] == "length" and "window".startswith(short["answer"])


BAD = [
    pytest.param("tagging", "Ada\tB-PER\nwrote\n", "line 2 has 1 columns, the first word has 2", id="no tag"),
    pytest.param("tagging", "\n\n", "has no rows", id="empty file"),
    pytest.param("tagging", "Ada\tB-PER\nwrote\tPER\n", "line 1: 'PER' is no tag of an entity", id="no BIO"),
    pytest.param("tagging", "Ada\tB-PER\nwrote\tO\n", "line 1: tags is 'B-PER', which is no label", id="unseen tag"),
    pytest.param("question_answering", "{}", "is not a file of SQuAD's form", id="no SQuAD"),
    pytest.param(
        "question_answering",
        squad(1).replace('"answer_start": 4', '"answer_start": 5'),
        "row 1: the answer 'cat1' is not at answer_start 5, where the context has 'at1 '; it is at 4",
        id="answer_start off",
    ),
    pytest.param("prompt_answer", '{"prompt": "a", "answer": ""}\n', "line 1: answer is empty", id="empty answer"),
    pytest.param("prompt_answer", '{"prompt": "a"}\n', "has no label column .* it has prompt", id="no answers"),
]


@pytest.mark.parametrize("task, content, words", BAD)
def test_bad_tables(minillm, runs, tmp_path, task, content, words):
    """A validation table that does not do is one line with its place, before any training; no run folder stays."""
    write_tables(tmp_path, task)
    (tmp_path / f"valid.{SUFFIX[task]}").write_text(content, encoding="utf-8")
    line = one_line(minillm(*words_of(runs, tmp_path, task)))
    assert re.search(words, line) and f"valid.{SUFFIX[task]}" in line
    assert not (tmp_path / "run").exists()


def test_uneven_lists(minillm, runs, tmp_path):
    """As many tags as words, in every row of a table of lists."""
    (tmp_path / "train.jsonl").write_text('{"tokens": ["Ada", "wrote"], "tags": ["B-PER"]}\n', encoding="utf-8")
    table = tmp_path / "train.jsonl"
    words = ["--train", table, "--valid", table, "--out", tmp_path / "run", "--task.name", "tagging", "--quiet"]
    line = one_line(minillm("finetune", runs / "encoder", *words))
    assert "line 1: 2 words, but 1 tags; give each word one" in line


def test_an_encoder_writes_no_answers(minillm, runs, tmp_path):
    """The run that is named is of the wrong kind."""
    write_tables(tmp_path, "prompt_answer")
    words = words_of(runs, tmp_path, "prompt_answer")
    line = one_line(minillm(words[0], runs / "encoder", *words[2:]))
    assert "prompt_answer needs a decoder, this model is an encoder" in line
    assert not (tmp_path / "run").exists()


def test_a_question_without_its_context(minillm, learnt):
    """The line says how to give it."""
    folder, _ = learnt("question_answering")
    line = one_line(minillm("predict", folder / "run", "--text", "Who sat?"))
    assert "--text has no contexts" in line and "--pair beside --text" in line


def test_what_predict_does_not_read_of_a_prompt_is_said(minillm, learnt):
    """A prompt that fits the context, but not beside as many new tokens as the run says."""
    folder, _ = learnt("prompt_answer")
    status, _, err = minillm("predict", folder / "run", "--text", "0 0 0 0 0 0")
    assert status == 0 and re.match(r"1 of 1 prompts are answered without the first of their tokens, \d+ in all", err)
