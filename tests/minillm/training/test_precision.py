"""Which device and dtype a run gets, and that it is told why."""

import pytest
import torch

from minillm.errors import InputError
from minillm.training import precision
from minillm.training.precision import FAST_BF16, choose_compute_dtype, choose_device, cpu_flags, make_scaler

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


@pytest.mark.parametrize("flag", FAST_BF16)
def test_a_narrow_model_gets_float32_and_the_bound_is_said(monkeypatch, flag):
    """From the flag's bound on it is bfloat16; on a CPU without fast bfloat16 the width plays no part."""
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset([flag]))
    bound = FAST_BF16[flag]
    below = choose_compute_dtype("auto", CPU, width=bound - 1)
    assert below.dtype == torch.float32 and f"({flag}) pays from width {bound} on" in below.reason
    assert choose_compute_dtype("auto", CPU, width=bound).dtype == torch.bfloat16
    assert choose_compute_dtype("bfloat16", CPU, width=1).dtype == torch.bfloat16
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(["avx2"]))
    assert choose_compute_dtype("auto", CPU, width=4096).dtype == torch.float32


def test_the_better_of_two_flags_decides(monkeypatch):
    """A CPU with AMX has AVX-512 BF16 too; products run on AMX."""
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(["avx512_bf16", "amx_bf16"]))
    monkeypatch.setattr(precision, "FAST_BF16", {"amx_bf16": 10, "avx512_bf16": 20})
    choice = choose_compute_dtype("auto", CPU, width=15)
    assert choice.dtype == torch.bfloat16 and "amx_bf16" in choice.reason


@pytest.mark.parametrize("width", [16, 1024])
def test_a_gpu_does_not_ask_for_the_width(monkeypatch, width):
    """The bound is one of CPUs."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_compute_dtype("auto", CUDA, width=width).dtype == torch.bfloat16


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
