r"""Tagged sentences as CoNLL writes them: a word a line, its tag in the last column, a blank line between sentences.

    Ada<TAB>B-PER          columns between tabs; where the first line has none, between white space
    wrote<TAB>O            the first column is the word, the last one its tag; with one column there are no tags
    .<TAB>O
                           lines of the document mark -DOCSTART- and, among tabs, comments (`# ...`) are left out
    Paris<TAB>B-LOC

Read next: `tasks/tagging.py`.
"""

from __future__ import annotations

from pathlib import Path

from minillm.errors import InputError
from minillm.finetune.table import Table, lines_of

DOCUMENT_MARK = "-DOCSTART-"


def read_conll(path: Path) -> Table:
    """Return a table with a sentence a row: `tokens`, a list of words, and `tags` where the file has them.

    Raises:
        InputError: a line with another number of columns than the first one, an empty word, or bytes that are no UTF-8;
            the text names the line.
    """
    sentences: list[list[list[str]]] = []  # of lines of cells
    begins: list[int] = []
    separator, width, inside = None, 0, False
    with path.open("rb") as file:
        for number, line in lines_of(file, str(path)):
            line = line.rstrip("\r\n")
            if line.startswith("# ") and "\t" not in line and (separator or not width):
                continue
            if not width:
                separator = "\t" if "\t" in line else None
            cells = line.split(separator) if line.strip() else []
            if not cells or cells[0] == DOCUMENT_MARK:
                inside = False
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise InputError(
                    f"{path} line {number} has {len(cells)} columns, the first word has {width}; write a word and its "
                    f"tag with {'a tab' if separator else 'a space'} between, and a blank line between sentences"
                )
            if not (cells[0].strip() and cells[-1].strip()):
                raise InputError(f"{path} line {number} has an empty {'tag' if cells[0].strip() else 'word'}; fill it")
            if not inside:
                sentences.append([])
                begins.append(number)
                inside = True
            sentences[-1].append(cells)
    columns = {"tokens": [[cells[0] for cells in sentence] for sentence in sentences]}
    if width > 1:
        columns["tags"] = [[cells[-1] for cells in sentence] for sentence in sentences]
    return Table(path=str(path), columns=columns, lines=begins)
