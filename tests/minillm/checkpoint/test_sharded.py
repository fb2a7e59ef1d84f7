"""Shares of tensors on a disk that lies, cuts or refuses: found at once, never sealed by a manifest.

One process writes here, all of it; `tests/minillm/training/test_distributed.py` has several.
"""

import errno
import os

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from minillm.checkpoint.sharded import move_shards, read_shards, write_shards
from minillm.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


def tensors():
    generator = torch.Generator().manual_seed(1)
    return {
        "exp_avg.weight": torch.randn(7, 5, generator=generator),
        "exp_avg.none": torch.tensor([float("nan"), -0.0, 0.0]),
        "exp_avg.one": torch.randn((), generator=generator),
        "step.bfloat16": torch.randn(3, generator=generator).bfloat16(),
    }


def place(tmp_path):
    (tmp_path / "parts").mkdir()
    return tmp_path / "parts"


def test_what_is_written_is_read(tmp_path):
    folder = place(tmp_path)
    write_shards(folder, tensors())
    (tmp_path / "step").mkdir()
    move_shards(folder, tmp_path / "step")
    found = read_shards(tmp_path / "step")
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def last_byte_flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def zeros_at_the_end(content):
    return content[:-40] + bytes(40)


def a_sign_flipped(content):
    """Of a zero: equal as a number, not as bits."""
    place = content.rindex(bytes([0, 0, 0, 0x80]))
    return content[:place] + bytes(4) + content[place + 4 :]


def header_moved(content):
    """It says that a part lies elsewhere in the whole tensor."""
    return content.replace(b"[0, 0]", b"[0, 1]")


DAMAGES = {
    "last-byte": last_byte_flipped,
    "zeros": zeros_at_the_end,
    "sign-of-zero": a_sign_flipped,
    "offset": header_moved,
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_disk_that_keeps_other_bytes_is_found_out(tmp_path, monkeypatch, damage):
    folder, real = place(tmp_path), HuggingFaceStorageWriter.write_data

    def lying(self, plan, planner):
        done = real(self, plan, planner)
        (path,) = folder.iterdir()
        content = path.read_bytes()
        assert damage(content) != content
        path.write_bytes(damage(content))
        return done

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", lying)
    with pytest.raises(InputError, match=f"cannot write {folder}/shard-00001-.*: what is on the disk") as error:
        write_shards(folder, tensors())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=["full", "broken", "denied"])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_call_that_is_refused_names_what_could_not_be_written(tmp_path, monkeypatch, call, number):
    folder = place(tmp_path)

    def refused(*words, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((FileSystem, "create_stream") if call == "open" else (os, "fsync")), refused)
    with pytest.raises(InputError, match=f"cannot write {folder}.*: {os.strerror(number)}"):
        write_shards(folder, tensors())
