"""Tensors come back bit for bit; a file that is damaged or of another model says so at its first tensor."""

import json
import struct

import pytest
import torch
from torch import nn

from minillm.checkpoint import native
from minillm.checkpoint.native import put_tensors, read_tensors, tensors_of, write_tensors
from minillm.errors import InputError

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5)], ids=str)
def test_round_trip(tmp_path, dtype, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    write_tensors(tmp_path / "x.safetensors", {"a.b": tensor, "t": torch.ones(4, 6)[:, ::2].t()})
    back = read_tensors(tmp_path / "x.safetensors")
    assert back["a.b"].dtype == dtype and torch.equal(back["a.b"], tensor)
    assert torch.equal(back["t"], torch.ones(3, 4))


def test_numbers_that_are_none_keep_their_bits(tmp_path):
    bits = torch.tensor([0x7FC00001, -0x400000, 0x7F800000, -(2**31)], dtype=torch.int32)
    write_tensors(tmp_path / "x", {"a": bits.view(torch.float32)})
    assert torch.equal(read_tensors(tmp_path / "x")["a"].view(torch.int32), bits)


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path):
    tensors = {name: torch.full((3,), float(i)) for i, name in enumerate("dbca")}
    write_tensors(tmp_path / "one", tensors)
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "on_disk",
    [
        pytest.param({"a": torch.tensor([1.0, -0.0]), "b": torch.ones(1)}, id="a-sign-of-zero"),
        pytest.param({"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(1)}, id="a-number"),
        pytest.param({"a": torch.tensor([1.0, 0.0], dtype=torch.float64), "b": torch.ones(1)}, id="a-dtype"),
        pytest.param({"a": torch.tensor([[1.0, 0.0]]), "b": torch.ones(1)}, id="a-shape"),
        pytest.param({"a": torch.tensor([1.0, 0.0])}, id="one-less"),
    ],
)
def test_a_disk_that_has_something_else_is_found_out(tmp_path, monkeypatch, on_disk):
    """It says that it took all; that is read back, bit for bit."""
    save = native.save_file
    monkeypatch.setattr(native, "save_file", lambda tensors, path, **options: save(on_disk, path, **options))
    with pytest.raises(InputError, match=r"cannot write \S*/x: what is on the disk differs from what was written"):
        write_tensors(tmp_path / "x", {"a": torch.tensor([1.0, 0.0]), "b": torch.ones(1)})


def test_what_is_read_back_comes_from_the_disk(tmp_path, monkeypatch):
    """Flushed, and forgotten by the system: else its memory would be read, which has all that was written."""
    done = []
    for name in ("save_file", "sync_file", "forget_cached", "load_file"):
        real = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *w, name=name, real=real, **o: (done.append(name), real(*w, **o))[1])
    write_tensors(tmp_path / "x", {"a": torch.ones(2)})
    assert done == ["save_file", "sync_file", "forget_cached", "load_file"]


class Tied(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(5, width), nn.Linear(width, 5, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.zeros(7), persistent=False)


def test_a_tied_tensor_is_there_once_and_stays_tied():
    model, other = Tied(), Tied()
    tensors = tensors_of(model)
    assert list(tensors) == ["count", "embedding.weight"]
    put_tensors(other, tensors, source="file")
    assert torch.equal(other.output.weight, model.embedding.weight) and other.output.weight is other.embedding.weight


def test_put_keeps_the_models_dtype_and_storage():
    model = nn.Linear(2, 2, bias=False)
    place = model.weight.data_ptr()
    put_tensors(model, {"weight": torch.ones(2, 2, dtype=torch.bfloat16)}, source="file")
    assert model.weight.dtype == torch.float32 and model.weight.data_ptr() == place and model.weight.eq(1).all()


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, r"asks for weight \(2, 3\), the file has \(2, 4\)"),
        ({"bias": torch.ones(2)}, r"asks for weight \(2, 3\), the file has no such tensor"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)},
            r"asks for more no such tensor, the file has \(1,\)",
        ),
    ],
    ids=["shape", "missing", "more"],
)
def test_another_architecture_is_refused_and_the_model_unchanged(tensors, words):
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    with pytest.raises(InputError, match=f"f.safetensors is of another architecture: .*{words}") as error:
        put_tensors(model, tensors, source="f.safetensors")
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())


def header(table) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param(b"\x08\x00\x00\x00\x00\x00\x00\x00not json", id="no-json"),
        pytest.param(header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}) + b"\0" * 12, id="cut"),
        pytest.param(header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}) + b"\0" * 8, id="offsets"),
        pytest.param(header({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}) + b"\0" * 16, id="dtype"),
        pytest.param(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", id="a-pickle"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match="cannot read .*model.safetensors: .*; the checkpoint is damaged, use an"
    ) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_one_line(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.randn(3), "b": torch.randn(2, 2)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="the checkpoint is damaged"):
            read_tensors(path)


def test_a_file_that_is_missing_or_a_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="model.safetensors is missing; the checkpoint is not whole"):
        read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        read_tensors(tmp_path)


def test_an_unwritable_place_is_one_line_with_the_name_that_the_user_knows(tmp_path):
    with pytest.raises(InputError, match="cannot write /known/name: No such file or directory; all is safe"):
        path = tmp_path / "none" / "x"
        write_tensors(path, {"a": torch.ones(1)}, named=tmp_path.__class__("/known/name"), safe="all is safe")
