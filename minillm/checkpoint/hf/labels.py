"""What a config.json says of a task, and what a task says to it: `id2label`, `label2id`, `problem_type`.

    classification      problem_type single_label_classification, multi_label_classification or regression; without one
                        it is regression with one label and single_label with several
    tagging             a label for each tag
    question_answering  two outputs, start and stop, without names

Beside them there is a table "minillm" of what no key of transformers' own can say: whether an input is two texts, and
whether a question may have no answer, and how long texts are cut.

Read next: `families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.checkpoint.hf.family import Purpose
from minillm.checkpoint.hf.keys import Keys

PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
PURPOSES: Mapping[str, Purpose] = {
    **dict.fromkeys(PROBLEMS, "classification"),
    "tagging": "tagging",
    "question_answering": "question_answering",
}
OURS = ("pairs", "unanswerable")  # what the table "minillm" may hold, true or false each


def read_task(keys: Keys, purpose: Purpose) -> dict[str, Any]:
    """Return what a folder says of its task, as the table of a `TaskFacts`.

    Raises:
        InputError: labels that are not numbered 0, 1, ..., or of which two have one name.
    """
    labels = _labels(keys)
    own = keys.table_of("minillm") or {}
    facts = {name: own[name] for name in OURS if isinstance(own.get(name), bool)}
    if purpose == "question_answering":
        if len(labels) != 2:
            keys.refuse("id2label", "question answering has two outputs, start and stop")
        return {"name": purpose, **facts}
    if purpose == "tagging":
        return {"name": purpose, "labels": labels, **facts}
    usual = "regression" if len(labels) == 1 else "single_label"
    name = keys.choice("problem_type", {problem: name for name, problem in PROBLEMS.items()}, PROBLEMS[usual])
    if name != "regression":
        return {"name": name, "labels": labels, **facts}
    if len(labels) != 1:
        keys.refuse("problem_type", f"regression of one number is, and there are {len(labels)} labels")
    return {"name": name, **facts}


def read_text(keys: Keys) -> dict[str, Any]:
    """Return what a folder says of how texts are read, as the table of a `TextConfig`; empty where it says nothing."""
    text = (keys.table_of("minillm") or {}).get("text", {})
    if not isinstance(text, dict):
        keys.wrong("minillm", 'a table, in which "text" is one of settings')
    return text


def write_task(task: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a task, given the tables of its `TaskFacts` and of the `TextConfig` beside it."""
    name = task["name"]
    labels: Sequence[str] = task["labels"] or ["LABEL_0", "LABEL_1"][: 1 if name == "regression" else 2]
    keys: dict[str, Any] = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if name in PROBLEMS:
        keys["problem_type"] = PROBLEMS[name]
    return keys | {"minillm": {**{name: task[name] for name in OURS}, "text": dict(text)}}


def _labels(keys: Keys) -> list[str]:
    """Return the labels' names by their numbers; without names they are LABEL_0, LABEL_1, ..."""
    table = keys.table_of("id2label")
    if table is None:
        return [f"LABEL_{number}" for number in range(keys.whole("num_labels", 2))]
    names = [table.get(str(number)) for number in range(len(table))]
    if not names or not all(map(_is_name, names)) or len(set(names)) < len(names):
        keys.wrong("id2label", 'names of labels, each another one, by their numbers "0", "1", ...')
    return [str(name) for name in names]


def _is_name(word: object) -> bool:
    """Return whether a label can be written anywhere: JSON lets half of a surrogate pair through."""
    return isinstance(word, str) and word != "" and not any("\ud800" <= letter <= "\udfff" for letter in word)
