"""The two CSV files: what is written is what is read, and a resumed run cuts them at its step."""

import errno
import os
import struct

import pytest

from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.training.records import METRICS, Records, cut, read_columns, written


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def row(step, **given):
    return {
        "step": step,
        "tokens": 8 * step,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "valid": {},
    } | given


def test_rows_come_back(folder):
    with Records(folder, step=0) as records:
        records.metrics(**row(1))
        records.metrics(**row(2, loss=None, grad_norm=float("inf"), z=(3.5, -0.25), valid={"loss": 2.25}))
        records.timing(step=2, seconds=0.12345, tokens_per_second=1234.56, mfu=None)
        records.timing(step=3, seconds=1.0, tokens_per_second=1.0, mfu=0.123456789)
    assert read_columns(folder.metrics_path) == {
        "step": [1, 2], "tokens": [8, 16], "loss": [2.5, None], "learning_rate": [1e-3, 1e-3],
        "grad_norm": [1.0, float("inf")], "loss_z": [None, 3.5], "grad_norm_z": [None, -0.25],
        "valid_loss": [None, 2.25],
    }  # fmt: skip
    assert (
        folder.timing_path.read_text()
        == "step,seconds,tokens_per_second,mfu\n2,0.123,1234.6,\n3,1.0,1,0.12346\n".replace("1.0,1,", "1,1,")
    )


def test_rows_are_there_before_the_file_is_closed(folder):
    with Records(folder, step=0) as records:
        records.metrics(**row(1))
        assert read_columns(folder.metrics_path)["step"] == [1]


def test_written_tells_any_two_float32_numbers_apart():
    for start in (0x00000001, 0x3F800000, 0x40490FDB, 0x7F7FFFF0):
        near = [struct.unpack("f", struct.pack("I", start + i))[0] for i in range(8)]
        assert len({written(value) for value in near}) == 8
        assert [struct.unpack("f", struct.pack("f", float(written(value))))[0] for value in near] == near


def test_written_keeps_whole_numbers_whole():
    assert (written(12_345_678_901), written(None), written(0.5)) == ("12345678901", "", "0.5")


HEADER = ",".join(METRICS) + "\n"


@pytest.mark.parametrize(
    "text, step, kept",
    [
        pytest.param("1,8,2,1,1,,,\n2,8,2,1,1,,,\n3,8,2,1,1,,,\n", 2, "1,8,2,1,1,,,\n2,8,2,1,1,,,\n", id="later-rows"),
        pytest.param("1,8,2,1,1,,,\n2,8,2", 2, "1,8,2,1,1,,,\n", id="half-a-row"),
        pytest.param("1,8,2,1,1,,,\n2,8,2,1,1,,,", 2, "1,8,2,1,1,,,\n", id="row-without-end"),
        pytest.param("1,8,2,1,1,,,\n\x00\x00\n", 2, "1,8,2,1,1,,,\n", id="zeros-of-a-crash"),
        pytest.param("1,8,2,1,1,,,\n²,8,2,1,1,,,\n", 2, "1,8,2,1,1,,,\n", id="a-digit-that-is-no-number"),
        pytest.param(f"1,8,2,1,1,,,\n{'0' * 5000},8,2,1,1,,,\n", 2, "1,8,2,1,1,,,\n", id="digits-without-end"),
        pytest.param("1,8,2,1,1,,,\n", 0, "", id="a-new-run"),
        pytest.param("", 5, "", id="no-rows"),
    ],
)
def test_cut(folder, text, step, kept):
    folder.metrics_path.write_text(HEADER + text)
    assert cut(folder.metrics_path, METRICS, step) == HEADER + kept


def test_cut_of_a_file_that_is_gone(folder):
    assert cut(folder.metrics_path, METRICS, 5) == HEADER


@pytest.mark.parametrize(
    "text, words",
    [(HEADER + "one,8,2,1,1,,,\n", "damaged: could not convert"), (None, "cannot read .*: No such file"), ("", None)],
    ids=["words", "missing", "empty"],
)
def test_reading_what_is_no_such_table(tmp_path, text, words):
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    if words is None:
        assert read_columns(path) == {}
        return
    with pytest.raises(InputError, match=words):
        read_columns(path)


def test_a_row_that_a_full_disk_refuses_is_told_once(folder, file_size_limit):
    """Closing the file tries the rest of the row again; that failure must not take the place of the first one."""
    with pytest.raises(InputError, match="cannot write .*metrics.csv: File too large") as error, file_size_limit(60):
        with Records(folder, step=0) as records:
            for step in range(1, 9):
                records.metrics(**row(step))
    assert isinstance(error.value.__cause__, OSError) and error.value.__cause__.__context__ is None


def test_a_row_that_was_cut_short_is_written_whole_when_there_is_room_again(folder, monkeypatch):
    """The half of it that was written goes; it waits, and comes before the next one."""
    told, real, calls = [], os.write, []

    def half(descriptor, content):
        calls.append(content)
        if len(calls) == 2:
            real(descriptor, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content)

    with Records(folder, step=0, on_failure=told.append) as records:
        monkeypatch.setattr(os, "write", half)
        records.metrics(**row(1))
        records.metrics(**row(2))
        assert read_columns(folder.metrics_path)["step"] == [1]
        with pytest.raises(InputError, match="metrics.csv: No space left"):
            records.sync()
        records.metrics(**row(3))
        records.sync()
    assert read_columns(folder.metrics_path)["step"] == [1, 2, 3]
    assert len(told) == 1 and "cannot write" in str(told[0]) and "no checkpoint was saved before" in str(told[0])


def test_rows_of_a_file_with_other_columns_keep_theirs(folder):
    """A run that was begun before there were z-scores goes on."""
    folder.metrics_path.write_text("step,tokens,loss,learning_rate,grad_norm,valid_loss\n1,8,2,1,3,4\n2,8,2,1,3,\n")
    assert cut(folder.metrics_path, METRICS, 1) == HEADER + "1,8,2,1,3,,,4\n"
