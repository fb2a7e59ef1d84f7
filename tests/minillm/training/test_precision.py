"""Which device and dtype a run gets, and that it is told why."""

import pytest
import torch

from minillm.errors import InputError
from minillm.training import precision
from minillm.training.precision import choose_compute_dtype, choose_device, cpu_flags, make_scaler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, False, "cuda"), (False, True, "mps"), (True, True, "cuda"), (False, False, "cpu")]
)
def test_auto_takes_the_first_that_is_there(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == CPU


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="asks for cuda, but PyTorch .* finds only cpu here; take auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "flags, expected, words",
    [
        ("fpu avx2", torch.float32, "no bfloat16 products"),
        ("fpu avx512_bf16", torch.bfloat16, "avx512_bf16"),
        ("amx_bf16 avx512_bf16", torch.bfloat16, "amx_bf16"),
        ("avx512_bf16_not", torch.float32, "no bfloat16"),
    ],
    ids=["avx2", "avx512", "amx", "other"],
)
def test_a_cpu_gets_bfloat16_only_where_it_multiplies_it(monkeypatch, flags, expected, words):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags.split()))
    choice = choose_compute_dtype("auto", CPU)
    assert choice.dtype == expected and words in choice.reason


@pytest.mark.parametrize("supported, expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_gets_bfloat16_where_it_has_units(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_compute_dtype("auto", CUDA).dtype == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_taken(name):
    assert choose_compute_dtype(name, CPU).dtype == getattr(torch, name)
    assert (make_scaler(CPU, getattr(torch, name)) is not None) == (name == "float16")


def test_flags_are_those_of_the_first_cpu(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: amx_bf16\n")
    assert cpu_flags(path) == {"fpu", "avx2"}
    assert cpu_flags(tmp_path / "none") == frozenset()
