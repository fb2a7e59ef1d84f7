"""Tagged sentences from files."""

import pytest

from minillm.errors import InputError
from minillm.finetune.conll import read_conll

TABS = "Ada\tB-PER\nwrote\tO\n\nParis\tB-LOC\n"
CONLL2003 = (
    "-DOCSTART- -X- -X- O\n\nAda NNP I-NP I-PER\nwrote VBD I-VP O\n\n\n-DOCSTART- -X- -X- O\n\nParis NNP I-NP I-LOC"
)
CONLLU = "# text = Ada wrote\n# id = 1\nAda\tX\tB-PER\nwrote\tX\tO\n# text = ?\n\nParis\tX\tB-LOC\n"


def read(tmp_path, text):
    path = tmp_path / "some.conll"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_conll(path)


@pytest.mark.parametrize(
    "text, tags, lines",
    [
        pytest.param(TABS, [["B-PER", "O"], ["B-LOC"]], [1, 4], id="tabs"),
        pytest.param(TABS.replace("\n", "\r\n"), [["B-PER", "O"], ["B-LOC"]], [1, 4], id="Windows' line ends"),
        pytest.param("\ufeff\n \n" + TABS, [["B-PER", "O"], ["B-LOC"]], [3, 6], id="blank lines first"),
        pytest.param(CONLL2003, [["I-PER", "O"], ["I-LOC"]], [3, 9], id="CoNLL-2003"),
        pytest.param(CONLLU, [["B-PER", "O"], ["B-LOC"]], [3, 7], id="comments"),
    ],
)
def test_read(tmp_path, text, tags, lines):
    """Words are the first column, tags the last; a row knows the line at which its sentence begins."""
    table = read(tmp_path, text)
    assert table.columns == {"tokens": [["Ada", "wrote"], ["Paris"]], "tags": tags}
    assert list(table.lines) == lines


def test_words_alone(tmp_path):
    """One column: sentences to be tagged."""
    assert read(tmp_path, "Ada\nwrote\n\n#\n").columns == {"tokens": [["Ada", "wrote"], ["#"]]}


def test_spaces_within_a_word_between_tabs(tmp_path):
    """Among tabs a space is a character like any other, and so is the sign that begins a comment."""
    assert read(tmp_path, "New York\tB-LOC\n#\tO\n").columns["tokens"] == [["New York", "#"]]


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param("Ada\tO\nwrote\n", "line 2 has 1 columns, the first word has 2; .* a tab between", id="no tag"),
        pytest.param(
            "Ada O\nwrote it O\n", "line 2 has 3 columns, the first word has 2; .* a space between", id="space"
        ),
        pytest.param("Ada\tO\n\tO\n", "line 2 has an empty word", id="empty word"),
        pytest.param("Ada\tO\nwrote\t\n", "line 2 has an empty tag", id="empty tag"),
        pytest.param(b"Ada\tO\n\xff\tO\n", "line 2 is not UTF-8", id="encoding"),
    ],
)
def test_bad_files(tmp_path, text, words):
    """One line with the file's line."""
    with pytest.raises(InputError, match=words):
        read(tmp_path, text)
