"""Tables: what each kind of file holds, and what is wrong with one, with its line."""

import csv
import json

import pyarrow.parquet
import pytest

from minillm.errors import InputError
from minillm.finetune import table as tables
from minillm.finetune.config import TableConfig
from minillm.finetune.table import Table, find_columns, read_table, text_table
from minillm.finetune.tasks.texts import TextTask

KNOWN = TextTask.column_names
ODD = [
    'he said "no"',
    "a,b",
    "tab\there",
    "two\nlines",
    "  spaces  ",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
    "x\u2028y\x85z",
]


def read(path, content, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, TableConfig(**settings), KNOWN)


def wrong(path, content, **settings):
    """Return the only line of the error that reading brings."""
    with pytest.raises(InputError) as error:
        read(path, content, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_odd_texts_come_back(tmp_path, suffix):
    """Written by the csv module, json and pyarrow: quotes, delimiters, line ends, wide characters."""
    path = tmp_path / f"odd.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text", "label"], *([text, "1"] for text in ODD)])
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": 1}) + "\n" for t in ODD), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": ODD, "label": [1] * len(ODD)}), path)
    table = read_table(path, TableConfig(), KNOWN)
    assert table.texts("text") == ODD
    assert table.names("label") == ["1"] * len(ODD)


def test_a_tsv_takes_quotes_as_characters(tmp_path):
    """As GLUE's files are written: a lone quote swallows nothing."""
    table = read(tmp_path / "a.tsv", 'text\tlabel\n"so\t1\nhe said "no"\t0\n')
    assert table.texts("text") == ['"so', 'he said "no"'] and table.lines == [2, 3]
    quoted = read(tmp_path / "b.tsv", 'text\tlabel\n"he said ""no"""\t0\n', quotes="yes")
    assert quoted.texts("text") == ['he said "no"']


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("suffix, sign", [("csv", ","), ("tsv", "\t")])
def test_line_ends_and_byte_order_marks_are_no_text(tmp_path, suffix, sign, mark, newline):
    lines = [f"text{sign}label", f"one{sign}a", "", f"two{sign}b"]
    table = read(tmp_path / f"a.{suffix}", mark + newline.join(lines))
    assert table.columns == {"text": ["one", "two"], "label": ["a", "b"]}
    assert table.lines == [2, 4]


def test_a_header_is_known_by_its_names(tmp_path):
    """Where no cell of the first line names a column it is a row; `data.header` has the last word."""
    rows = "a good film\t1\na bad one\t0\n"
    bare = read(tmp_path / "a.tsv", rows)
    assert not bare.named and bare.columns["1"] == ["a good film", "a bad one"]
    assert read(tmp_path / "b.tsv", "Sentence\tgrade\n" + rows).named
    assert read(tmp_path / "c.tsv", "words\tgrade\n" + rows, text_column="words").named
    assert len(read(tmp_path / "d.tsv", rows, header="yes")) == 1
    assert len(read(tmp_path / "e.tsv", "text\tlabel\n", header="no")) == 1


def test_a_label_that_is_the_number_of_a_column_makes_no_header(tmp_path):
    """A first row of label 1 is a row where column 1 is asked for, and a column of that name is still found."""
    asked = {"text_column": "2", "label_column": "1"}
    table = read(tmp_path / "a.csv", "1,fine\n0,dull\n1,warm\n", **asked)
    assert (table.named, table.columns) == (False, {"1": ["1", "0", "1"], "2": ["fine", "dull", "warm"]})
    assert read(tmp_path / "a.csv", "1990,1991\nfine,x\n", text_column="1990", label_column="1991").named


def test_lines_of_rows_that_hold_line_ends(tmp_path):
    """The line at which a row begins."""
    table = read(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\nthree,0\n')
    assert table.lines == [2, 4] and table.place(1).endswith("a.csv line 4")


@pytest.mark.parametrize(
    "name, content, hints",
    [
        ("a.csv", 'text,label\n"one,1\ntwo,0\n', ["line 2", "quoting"]),
        ("a.csv", 'text,label\none,1\n"two"x,0\n', ["line 3", "quoting"]),
        ("a.csv", "text,label\none,1\ntwo\n", ["line 3", "1 cells", "2"]),
        ("a.csv", "text,label\none,1\rtwo,0\r", ["line 2", "carriage return"]),
        ("a.tsv", "text\tlabel\none\t1\ntwo\t0\textra\n", ["line 3", "3 cells", "tab"]),
        ("a.tsv", b"text\tlabel\none\t1\ntw\xff\t0\n", ["line 3", "UTF-8", "byte 3"]),
        ("a.csv", "text,label\none,1\n".encode("utf-16"), ["line 1", "UTF-8"]),
        ("a.csv", "text,text\none,1\n", ["two columns 'text'"]),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', ["line 2", "JSON"]),
        ("a.jsonl", '{"text": "a"}\n["a"]\n', ["line 2", "object"]),
        ("a.jsonl", "[" * 100_000 + "\n", ["line 1", "JSON"]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\ud83d"}\n', ["line 2", "\\ud83d alone"]),
        ("a.jsonl", '{"text": "a", "label": ["x", {"\\uDE00": 1}]}\n', ["line 1", "\\ude00 alone"]),
        ("a.parquet", "no parquet", ["Parquet"]),
        ("a.csv", "", ["no rows"]),
        ("a.csv", "text,label\n", ["no rows"]),
        ("a.xlsx", "", [".csv", ".parquet"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, hints):
    line = wrong(tmp_path / name, content)
    assert all(hint in line for hint in (name, *hints)), line


def test_two_columns_of_one_name_in_parquet_are_one_line(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet has two columns 'text'; give each a name of its own$"):
        read_table(tmp_path / "a.parquet", TableConfig(), KNOWN)


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    for part, texts in enumerate((["a", "b"], ["c"])):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"a.parquet/part-{part}.parquet")
    assert read_table(tmp_path / "a.parquet", TableConfig(), KNOWN).texts("text") == ["a", "b", "c"]


def test_an_escaped_surrogate_pair_is_one_character(tmp_path):
    assert read(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n').texts("text") == ["\U0001f600"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_a_line_of_100_megabytes(tmp_path, suffix):
    """It is refused by its number, and never held in memory as a whole."""
    path = tmp_path / f"long.{suffix}"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n')
        for _ in range(100):
            file.write(b"x" * 2**20)
    with pytest.raises(InputError, match="line 2 is longer than 16 MiB"):
        read_table(path, TableConfig(), KNOWN)


def test_the_csv_modules_own_limit_comes_back(tmp_path):
    """Cells above its 128 KiB are read, and the limit of the process is what it was."""
    before = csv.field_size_limit()
    table = read(tmp_path / "a.csv", f'text,label\n"{"x" * 300_000}",1\n')
    assert len(table.texts("text")[0]) == 300_000 and csv.field_size_limit() == before
    assert before < tables.MAX_LINE
    with pytest.raises(InputError) as error:  # whose traceback holds the reader amid the file
        read(tmp_path / "a.csv", "text,label\none,1\ntwo\n")
    assert csv.field_size_limit() == before, error


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no file .*nowhere.csv"):
        read_table(tmp_path / "nowhere.csv", TableConfig(), KNOWN)


def table_of(*names, named=True):
    return Table(path="a.csv", columns={name: ["x"] for name in names}, lines=[1], named=named)


def columns(table, labelled=True, **settings):
    found = find_columns(table, TableConfig(**settings), KNOWN, labelled=labelled)
    return found.text, found.pair, found.label


def test_columns_are_found_by_name_or_number():
    assert columns(table_of("id", "Sentence", "label")) == ("Sentence", None, "label")
    assert columns(table_of("premise", "hypothesis", "label")) == ("premise", "hypothesis", "label")
    assert columns(table_of("a", "b", "c"), text_column="b", label_column="3") == ("b", None, "c")
    assert columns(table_of("1", "2", named=False)) == ("1", None, "2")
    assert columns(table_of("1", named=False), labelled=False) == ("1", None, None)
    assert columns(table_of("1", "2", "3", named=False), text_column="2", label_column="1") == ("2", None, "1")


@pytest.mark.parametrize(
    "rows, suspect",
    [
        (["words\tgrade", "a\t1", "b\t0", "c\t0"], True),
        (["words\tkind", "a\tx", "b\ty", "c\tx", "d\ty"], True),
        (["a\tx", "b\ty", "c\tx", "d\ty"], False),
        (["a\tx", "b\ty", "c\tz"], False),
        (["a\t1.5", "b\t2.5"], False),
    ],
)
def test_a_first_line_that_seems_to_name_columns_is_not_taken_for_a_row(tmp_path, rows, suspect):
    """Its label is the only one without a number, or the only one that comes once; `data.header` has the last word."""
    table = read(tmp_path / "a.tsv", "\n".join(rows))
    if suspect:
        with pytest.raises(InputError, match="if its first line names them .words, .*data.header to no"):
            columns(table)
        table = read(tmp_path / "a.tsv", "\n".join(rows), header="no")
    assert columns(table, header="no" if suspect else "auto") == ("1", None, "2")


def test_a_first_line_that_seems_to_name_columns_is_none_of_those_asked_for_by_number(tmp_path):
    """Its words would be a text with a label of its own; a header's names say that it is one."""
    content = "utterance\tintent\na\tx\nb\ty\nc\tx\nd\ty"
    asked = {"text_column": "1", "label_column": "2"}
    with pytest.raises(InputError, match="names them .utterance, intent., say these in data.text_column"):
        columns(read(tmp_path / "a.tsv", content, **asked), **asked)
    named = {"text_column": "utterance", "label_column": "intent"}
    assert columns(read(tmp_path / "a.tsv", content, **named), **named) == ("utterance", None, "intent")
    assert columns(read(tmp_path / "a.tsv", content, header="yes", **asked), **asked) == ("utterance", None, "intent")


@pytest.mark.parametrize(
    "names, settings, hint",
    [
        (("words", "label"), {}, "no text column .* it has words, label"),
        (("text", "grade"), {}, "no label column .* it has text, grade"),
        (("text", "label"), {"label_column": "klass"}, r"no column klass \(data.label_column\); it has text, label"),
        (("text", "label"), {"label_column": "3"}, "no column 3"),
        (("text", "label"), {"label_column": "text"}, "cannot be two of"),
    ],
)
def test_a_missing_column_lists_those_that_are_there(names, settings, hint):
    with pytest.raises(InputError, match=hint):
        columns(table_of(*names), **settings)


def test_a_file_whose_cells_are_not_parted_as_its_suffix_says(tmp_path):
    """Semicolons in a .csv, as some spreadsheets write it: its one column has no name that could be listed."""
    with pytest.raises(InputError, match="a.csv has one cell in each row, .* in a .csv commas"):
        columns(read(tmp_path / "a.csv", "text;label\nfine;good\ndull;bad\n"))


def test_white_space_around_a_label_is_not_of_its_name():
    """ "a, x" and "a,x" have one label."""
    table = Table(path="a.csv", columns={"label": [" x", "x", "x\t", "x y"]}, lines=[1, 2, 3, 4])
    assert table.names("label") == ["x", "x", "x", "x y"]


def test_values_that_are_no_texts_and_no_labels():
    """The first one's place, and how many there are."""
    table = Table(
        path="a.jsonl", columns={"text": ["a", " ", ""], "label": ["x", None, 0.5], "n": [1, "b", "c"]}, lines=[1, 3, 4]
    )
    with pytest.raises(InputError, match=r"a.jsonl line 3: text is empty \(and 1 more rows\)"):
        table.texts("text")
    with pytest.raises(InputError, match=r"a.jsonl line 3: label takes the name of a label, got None"):
        table.names("label")
    zero = Table(path="a.csv", columns={"label": ["x", "y\0"]}, lines=[2, 3])
    with pytest.raises(InputError, match=r"a.csv line 3: label takes the name of a label, got 'y.x00'"):
        zero.names("label")
    with pytest.raises(InputError, match=r"a.jsonl line 1: n takes a text, got 1$"):
        table.texts("n")


def test_a_blank_line_of_a_text_file_is_an_empty_text(tmp_path):
    """Answers of predict stand beside the lines that were asked: none may be left out."""
    table = read(tmp_path / "a.txt", "one\n\ntwo\n")
    assert list(table.columns["text"]) == ["one", "", "two"]
    with pytest.raises(InputError, match="line 2: text is empty"):
        table.texts("text")
    assert text_table(["a"], ["b"]).columns == {"text": ["a"], "pair": ["b"]}
