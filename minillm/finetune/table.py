"""CSV, TSV, JSONL and Parquet -> columns of values, with the line of each row; a broken file is named with its line.

    .csv            cells between commas; "..." encloses a cell, and "" in it is one quote (RFC 4180)
    .tsv            cells between tabs; a quote is a character like any other, as in GLUE's files
    .jsonl, .ndjson one JSON object a line
    .parquet        read by pyarrow
    .txt            one text a line, for `predict`

All text is UTF-8, with or without a byte order mark. Blank lines are skipped, but in .txt they are empty texts.

Read next: `encoding.py`.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minillm.errors import InputError
from minillm.finetune.config import TableConfig

MAX_LINE = 16 * 2**20  # bytes; what is longer is no labelled text but a file of another kind
ROLES = ("text", "pair", "label")


@dataclass(frozen=True, kw_only=True)
class Table:
    """N rows of a file.

    path: where they came from, for messages.
    columns: name -> N values. Of .csv and .tsv texts; of .jsonl and .parquet whatever JSON can hold, None where absent.
    lines: (N,) the line, of .parquet and .json the row, that each began at, from 1.
    named: whether the file names its columns; else they are called "1", "2", ...
    """

    path: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    named: bool = True

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Return where a row stands, for messages: "train.tsv line 17"."""
        return f"{self.path} {'row' if self.path.endswith(('.parquet', '.json')) else 'line'} {self.lines[row]}"

    def texts(self, column: str) -> list[str]:
        """Return a column of texts.

        Raises:
            InputError: a value is empty or no text; the first one's place is named, and how many there are.
        """
        values = list(self.columns[column])
        wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
        if wrong:
            raise InputError(f"{self.place(wrong[0])}: {column} takes a text, got {values[wrong[0]]!r}{_more(wrong)}")
        empty = [row for row, value in enumerate(values) if not value.strip()]
        if empty:
            raise InputError(f"{self.place(empty[0])}: {column} is empty{_more(empty)}; remove such rows or fill them")
        return values

    def names(self, column: str) -> list[str]:
        """Return a column of label names: texts without white space around them, whole numbers and booleans as text.

        Raises:
            InputError: a value is empty or neither; the first one's place is named, and how many there are.
        """
        values = [name_of(value) for value in self.columns[column]]
        wrong = [row for row, value in enumerate(values) if value is None]
        if wrong:
            came = self.columns[column][wrong[0]]
            raise InputError(f"{self.place(wrong[0])}: {column} takes the name of a label, got {came!r}{_more(wrong)}")
        return [value for value in values if value is not None]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; None: there is none. A question is a text, its context the pair."""

    text: str
    pair: str | None = None
    label: str | None = None


def name_of(value: Any) -> str | None:
    """Return the name of a label as text, without white space around it; None where it is none.

    A name with the character 0 is none: settings, where a checkpoint keeps names, take no such text.

    >>> [name_of(value) for value in (" sport", 3, 1.0, True, "", None, 0.5, "a\\0b")]
    ['sport', '3', '1', 'true', None, None, None, None]
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if not isinstance(value, str) or "\0" in value:
        return None
    return value.strip() or None  # "a, x": the space is not of the name


def _more(rows: Sequence[int]) -> str:
    """Return how many rows beside the first one have the same trouble."""
    return f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""


def read_table(
    path: Path | str,
    config: TableConfig,
    known: Mapping[str, Sequence[str]],
    readers: Mapping[str, Callable[[Path], Table]] | None = None,
) -> Table:
    """Return the table in a file, by its suffix.

    Args:
        config: its `header` and `quotes` are read, and the columns that it names.
        known: role -> names of columns that a task looks for; by them a header is told from a first row.
        readers: suffix -> reader of other kinds of files, which come before those of this one: a task's own.
    Raises:
        InputError: no such file, an unknown suffix, broken quoting, encoding or JSON, rows of different widths, a line
            above 16 MiB, or no rows; the text names the file and the line.

    Cost: holds all cells in memory, some 100 bytes a cell beside its text.
    """
    path = Path(path)
    own: dict[str, Callable[[], Table]] = {
        ".csv": lambda: _read_cells(path, ",", config.quotes != "no", config, known),
        ".tsv": lambda: _read_cells(path, "\t", config.quotes == "yes", config, known),
        ".jsonl": lambda: _read_objects(path),
        ".ndjson": lambda: _read_objects(path),
        ".parquet": lambda: _read_parquet(path),
        ".txt": lambda: _read_texts(path),
    }
    suffix, others = path.suffix.lower(), readers or {}
    names = ", ".join(dict.fromkeys([*others, ".csv", ".tsv", ".jsonl", ".parquet"]))
    if suffix not in own and suffix not in others:
        raise InputError(f"{path} has no suffix of a table; name it {names}, by what is in it")
    try:
        table = others[suffix](path) if suffix in others else own[suffix]()
    except FileNotFoundError as error:
        raise InputError(f"no file {path}; give a table of texts: .csv, .tsv, .jsonl or .parquet") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(table):
        raise InputError(f"{path} has no rows; give a table with one text a row")
    return table


def text_table(texts: Sequence[str], pairs: Sequence[str] | None = None, *, path: str = "--text") -> Table:
    """Return a table of texts that stand in no file."""
    columns = {"text": list(texts)} | ({} if pairs is None else {"pair": list(pairs)})
    return Table(path=path, columns=columns, lines=range(1, len(texts) + 1))


def lines_of(file: BinaryIO, path: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its line end) of each line of a file open in binary mode.

    Only "\\n" ends a line: other characters that Unicode calls line ends belong to the text.

    Raises:
        InputError: bytes that are not UTF-8, or a line above MAX_LINE; the text names the line.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{path} line {number} is longer than {MAX_LINE // 2**20} MiB; is it a table of texts?")
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} line {number} is not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8"
            ) from error


def _read_cells(
    path: Path, delimiter: str, quoted: bool, config: TableConfig, known: Mapping[str, Sequence[str]]
) -> Table:
    """Return the table in a .csv or .tsv file."""
    with path.open("rb") as file, closing((_quoted if quoted else _plain)(file, path, delimiter)) as records:
        header: list[str] | None = None
        rows: list[list[str]] = []
        numbers: list[int] = []
        width = None
        for number, cells in records:
            if width is None:
                width = len(cells)
                if _is_header(cells, config, known):
                    header = cells
                    continue
            if len(cells) != width:
                raise InputError(
                    f"{path} line {number} has {len(cells)} cells, the first line has {width}; "
                    f"look for a missing or stray {'tab' if delimiter == chr(9) else repr(delimiter)} or quote"
                )
            rows.append(cells)
            numbers.append(number)
    names = header or [str(number + 1) for number in range(width or 0)]
    if (twice := _twice(names)) is not None:
        raise InputError(f"{path} has two columns {twice!r}; give each a name of its own, or set data.header to no")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return Table(path=str(path), columns=columns, lines=numbers, named=header is not None)


def _plain(file: BinaryIO, path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Yield (line, cells) of a file in which a quote is a character like any other."""
    for number, line in lines_of(file, str(path)):
        line = line.rstrip("\r\n")
        if line:
            yield number, line.split(delimiter)


def _quoted(file: BinaryIO, path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Yield (first line, cells) of a file in which quotes enclose cells, also over several lines."""
    with _long_cells():
        reader = csv.reader((line for _, line in lines_of(file, str(path))), delimiter=delimiter, strict=True)
        while True:
            begin = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "new-line character" in str(error):
                    raise InputError(
                        f"{path}: the row that begins at line {begin} has a carriage return amid it, outside of "
                        f'quotes; end lines with a line feed, and write a text with a carriage return inside "..."'
                    ) from error
                raise InputError(
                    f"{path}: broken quoting in the row that begins at line {begin} ({error}); write a quote inside "
                    f'"..." twice, or set data.quotes to no'
                ) from error
            if cells:
                yield begin, cells


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read cells up to MAX_LINE characters; its limit is one of the whole process."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_header(cells: Sequence[str], config: TableConfig, known: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a first line names columns."""
    if config.header != "auto":
        return config.header == "yes"
    asked = [name for name in (config.text_column, config.pair_column, config.label_column) if name]
    asked = [name for name in asked if not _is_place(name, len(cells))]  # a label 1 is not the name of column 1
    names = {name.lower() for role in ROLES for name in known.get(role, ())}
    return any(cell in asked or cell.strip().lower() in names for cell in cells)


def _read_objects(path: Path) -> Table:
    """Return the table in a file of JSON objects; a key that an object lacks is None in its row."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with path.open("rb") as file:
        for number, line in lines_of(file, str(path)):
            if not line.strip():
                continue
            row = parsed(line, f"{path} line {number}")
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number} is not a JSON object; write one a line, such as {{...}}")
            rows.append(row)
            numbers.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path=str(path), columns={name: [row.get(name) for row in rows] for name in names}, lines=numbers)


def parsed(text: str, place: str) -> Any:
    """Return what a JSON text says.

    Raises:
        InputError: it is no JSON, or a string in it has half of a surrogate pair, which no file in UTF-8 can hold; the
            text begins with `place`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise InputError(
                f"{place} has {half} alone, half of a surrogate pair and no character; remove it"
            ) from error
    return value


def _read_parquet(path: Path) -> Table:
    """Return the table in a Parquet file, or in a folder of such files as other programs write a long one."""
    import pyarrow
    from pyarrow import parquet

    try:
        dataset = parquet.ParquetDataset(path)
        if (twice := _twice(dataset.schema.names)) is not None:
            raise InputError(f"{path} has two columns {twice!r}; give each a name of its own")
        table = dataset.read()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(path=str(path), columns=columns, lines=range(1, table.num_rows + 1))


def _twice(names: Sequence[str]) -> str | None:
    """Return the first name that is there twice, None where none is."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _read_texts(path: Path) -> Table:
    """Return the table of a file with one text a line."""
    with path.open("rb") as file:
        texts = [line.rstrip("\r\n") for _, line in lines_of(file, str(path))]
    return text_table(texts, path=str(path))


def find_columns(table: Table, config: TableConfig, known: Mapping[str, Sequence[str]], *, labelled: bool) -> Columns:
    """Return the columns that hold text, pair and label.

    A column that the user named comes first, then one that is named as one of the known. A file without names has text
    and label in its two columns, or its text in its only one.

    Args:
        known: role ("text", "pair", "label") -> names that it is found by, in small letters, the likeliest first.
        labelled: whether a label column must be there.
    Raises:
        InputError: none is found, or the named one is not there; the text lists those that are.
    """
    asked = {"text": config.text_column, "pair": config.pair_column, "label": config.label_column}
    found: dict[str, str | None] = {}
    for role, name in asked.items():
        found[role] = _named(table, role, name) if name is not None else _by_known_name(table, known.get(role, ()))
    if not table.named and not any(asked.values()):
        names = list(table.columns)
        if len(names) == 1:
            found["text"] = names[0]
        elif len(names) == 2:
            found["text"], found["label"] = names
    wanted = ("text", "label") if labelled else ("text",)
    for role in wanted:
        if found[role] is None and not table.named and len(table.columns) == 1:  # such as a .csv with semicolons
            raise InputError(
                f"{table.path} has one cell in each row, and a {role} cannot be told apart in it; in a .csv commas "
                "stand between cells, in a .tsv tabs"
            )
        if found[role] is None:
            raise InputError(
                f"{table.path} has no {role} column that is known by its name; it has {listed(table.columns)}: "
                f"name one with data.{role}_column"
            )
    if (twice := _twice([name for name in found.values() if name is not None])) is not None:
        raise InputError(f"column {twice} of {table.path} cannot be two of text, pair and label; name others")
    assert found["text"] is not None
    if labelled and not table.named and config.header == "auto":  # also where columns were asked for by number
        _check_no_header(table, [found["text"], found["label"] or ""])
    return Columns(text=found["text"], pair=found["pair"], label=found["label"])


def _check_no_header(table: Table, names: Sequence[str]) -> None:
    """Raise InputError where the first of the rows seems to name the columns: it would become a text with a label.

    It does if its label is the only one that is no number, or the only one that is there once.
    """
    text, label = (table.columns[name][0] for name in names)
    others = list(table.columns[names[1]][1:])
    numbers = others and all(_is_number(other) for other in others) and not _is_number(label)
    repeated = others and label not in others and all(count > 1 for count in Counter(others).values())
    if numbers or repeated:
        raise InputError(
            f"{table.path} has no column that is known by its name; if its first line names them ({text:.40}, "
            f"{label:.40}), say these in data.text_column and data.label_column; if it is a row, set data.header to no"
        )


def _is_number(value: str) -> bool:
    """Return whether a cell is a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def _named(table: Table, role: str, name: str) -> str:
    """Return the column that the user named, by its name or by its number from 1."""
    names = list(table.columns)
    if name in table.columns:
        return name
    if _is_place(name, len(names)):
        return names[int(name) - 1]
    raise InputError(f"{table.path} has no column {name} (data.{role}_column); it has {listed(names)}")


def _is_place(name: str, count: int) -> bool:
    """Return whether a column is asked for by its number, from 1, among so many."""
    return name.isdecimal() and len(name) < 10 and 1 <= int(name) <= count


def _by_known_name(table: Table, known: Iterable[str]) -> str | None:
    """Return the first known name that a column bears, as it is written there."""
    written = {name.strip().lower(): name for name in table.columns}
    return next((written[name] for name in known if name in written), None)


def listed(names: Iterable[str]) -> str:
    """Return names of columns for a message."""
    return ", ".join(names) or "none"
