"""Questions from SQuAD's files."""

import json

import pytest

from minillm.errors import InputError
from minillm.finetune.squad import read_squad

QUESTION = {"id": "7", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}


def read(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_squad(path)


def test_nested(tmp_path):
    """Each question has its paragraph beside it; SQuAD 2.0's other keys are left out."""
    second = {"id": "8", "question": "When?", "is_impossible": True, "answers": [], "plausible_answers": [1]}
    paragraphs = [{"context": "Ada wrote.", "qas": [QUESTION, second]}, {"context": "The sea.", "qas": [QUESTION]}]
    table = read(tmp_path, {"version": "2", "data": [{"title": "A", "paragraphs": paragraphs}]})
    assert table.columns["context"] == ["Ada wrote.", "Ada wrote.", "The sea."]
    assert table.columns["question"] == ["Who?", "When?", "Who?"]
    assert table.columns["answers"] == [QUESTION["answers"], [], QUESTION["answers"]]
    assert table.place(1).endswith("some.json row 2")


def test_without_answers(tmp_path):
    """A file to be answered has no such column."""
    asked = {"data": [{"paragraphs": [{"context": "Ada wrote.", "qas": [{"question": "Who?"}]}]}]}
    assert set(read(tmp_path, asked).columns) == {"id", "question", "context"}


def test_a_list_of_objects(tmp_path):
    """Flat rows are read as they are."""
    table = read(tmp_path, [QUESTION | {"context": "Ada wrote."}, {"question": "When?", "context": "x"}])
    assert table.columns["answers"] == [QUESTION["answers"], None]


@pytest.mark.parametrize(
    "content, words",
    [
        pytest.param(b"{", "is not JSON: ", id="no JSON"),
        pytest.param([QUESTION | {"context": "Ada \ud83d"}], r"has .ud83d alone", id="half a character"),
        pytest.param(b"\xff", "is not UTF-8 text .byte 1.", id="encoding"),
        pytest.param({"data": [{"paragraphs": [{"qas": []}]}]}, "'context' is missing", id="no context"),
        pytest.param({"rows": []}, "'data' is missing", id="no data"),
        pytest.param({"data": 3}, "is not a file of SQuAD's form", id="a number"),
        pytest.param(3, "is not a file of SQuAD's form", id="nothing but a number"),
        pytest.param([QUESTION, 3], "row 2 is not an object with question, context and answers", id="mixed list"),
    ],
)
def test_bad_files(tmp_path, content, words):
    """One line that says what is wrong with the file."""
    with pytest.raises(InputError, match=words):
        read(tmp_path, content)
