r"""SQuAD's files: questions on paragraphs, each with the answers that people marked in its paragraph.

    {"data": [{"paragraphs": [{"context": "...", "qas": [
        {"id": "1", "question": "...", "answers": [{"text": "...", "answer_start": 9}]}]}]}]}

SQuAD 1.1 and 2.0 are written so, CMRC 2018, DRCD and others too; no answers mean that the paragraph has none. A list
of flat objects with `question`, `context` and `answers` is read as well.

Read next: `tasks/question_answering.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm.errors import InputError
from minillm.finetune.table import Table, parsed


def read_squad(path: Path) -> Table:
    """Return a table with a question a row: `id`, `question`, `context` and `answers`, as the file has them.

    Raises:
        InputError: not UTF-8, not JSON, or of another shape; the text says where.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8") from error
    rows = content if isinstance(content, list) else list(_questions(path, content))
    wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise InputError(f"{path} row {wrong} is not an object with question, context and answers")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(path=str(path), columns=columns, lines=range(1, len(rows) + 1))


def _questions(path: Path, content: Any) -> Iterator[dict[str, Any]]:
    """Yield the questions of the nested form."""
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    answers = {"answers": asked["answers"]} if "answers" in asked else {}
                    yield {"id": asked.get("id"), "question": asked["question"], "context": context} | answers
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a file of SQuAD's form ({error} is missing or of another type); "
            "it is data -> paragraphs -> context and qas -> question and answers"
        ) from error
