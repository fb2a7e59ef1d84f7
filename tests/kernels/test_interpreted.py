"""bfloat16 in Triton's interpreter against PyTorch's, which computes in float32 and rounds as a GPU does.

With a GPU the same kernels run compiled: what is demanded of the interpreter is what a GPU does.
"""

import os
import subprocess
import sys
from pathlib import Path

import minillm_kernels as mk
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from minillm_kernels import dispatch, interpreted
from planting import INTERPRETED
from triton.runtime import interpreter

if dispatch.INTERPRETED:
    interpreted.install()
BUILDER = interpreter.InterpreterBuilder
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16)


def test_every_bfloat16_and_every_tie_round_as_in_pytorch():
    """All 65,536 upper halves of a float32 with the lower halves at which the answer changes."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    numbers = (upper[:, None] | lower).view(np.float32)
    is_nan = np.isnan(numbers)
    found, expected = interpreted.rounded(numbers), bits(torch.from_numpy(numbers).bfloat16())
    assert (found == expected)[~is_nan].all()
    assert np.isnan(interpreted.widen(found[is_nan])).all()
    signs = interpreted.widen(np.array([0x8000, 0xFF80], np.uint16))
    assert signs.tolist() == [-0.0, -np.inf] and np.signbit(signs[0])


@triton.jit
def _arithmetic_kernel(x_ptr, y_ptr, out_ptr, flags_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs, mask=offs > 0, other=-1.5)
    out = (x + y, x - y, x * y, x / y, tl.fma(x, y, x), tl.where(x < y, x, y), -x, x * 3.0)
    for i in tl.static_range(len(out)):
        tl.store(out_ptr + i * SIZE + offs, out[i])
    flags = (x < y, x <= y, x > y, x >= y, x == y, x != y, x > 0)
    for i in tl.static_range(len(flags)):
        tl.store(flags_ptr + i * SIZE + offs, flags[i].to(tl.int8))


def test_arithmetic_and_comparisons_are_those_of_pytorch():
    SIZE = 64
    torch.manual_seed(0)
    x, y = (torch.randn(SIZE).to(DEVICE, torch.bfloat16) for _ in range(2))
    y[3:9] = x[3:9]
    x[5], y[0] = float("nan"), -1.5
    out = torch.empty(8, SIZE, dtype=torch.bfloat16, device=DEVICE)
    flags = torch.empty(7, SIZE, dtype=torch.int8, device=DEVICE)
    _arithmetic_kernel[(1,)](x, y, out, flags, SIZE)
    fma = (x.double() * y.double() + x.double()).to(torch.bfloat16)
    expected = [x + y, x - y, x * y, x / y, fma, torch.where(x < y, x, y), -x, x * 3]
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=0, equal_nan=True)
    assert flags.bool().equal(torch.stack([x < y, x <= y, x > y, x >= y, x == y, x != y, x > 0]))


@triton.jit
def _conversion_kernel(x_ptr, whole_ptr, out_ptr, half_ptr, back_ptr, int_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offs)  # float32
    low = x.to(tl.bfloat16)
    tl.store(out_ptr + offs, low)
    tl.store(half_ptr + offs, low.to(tl.float16))
    tl.store(back_ptr + offs, low.to(tl.float16).to(tl.bfloat16))
    tl.store(int_ptr + offs, low.to(tl.int32))
    tl.store(whole_ptr + offs, low.to(tl.int32).to(tl.bfloat16))


def test_conversions_are_those_of_pytorch():
    SIZE = 64
    x = (torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 300).to(DEVICE)
    whole, out, back = (torch.empty(SIZE, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    half, integer = (torch.empty(SIZE, dtype=dtype, device=DEVICE) for dtype in (torch.float16, torch.int32))
    _conversion_kernel[(1,)](x, whole, out, half, back, integer, SIZE)
    low = x.bfloat16()
    assert out.equal(low) and half.equal(low.half()) and back.equal(low.half().bfloat16())
    assert integer.equal(low.int()) and whole.equal(low.int().bfloat16())


@triton.jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)
    tl.store(c_ptr + offs, tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs), tl.load(c_ptr + offs)))


def test_dot_is_exact_to_float32():
    """16 products and the number to which they are added: as many roundings in float32, and none in bfloat16."""
    torch.manual_seed(0)
    a, b = (torch.randn(16, 16).to(DEVICE, torch.bfloat16) for _ in range(2))
    c = torch.ones(16, 16, device=DEVICE)
    _dot_kernel[(1,)](a, b, c, 16)
    expected = 1 + a.double() @ b.double()
    assert (c - expected).abs().max() <= 16 * torch.finfo(torch.float32).eps * expected.abs().max()


@triton.jit
def _adding(x, y):
    return x + y


@triton.jit
def _reduction_kernel(x_ptr, sums_ptr, sum_ptr, running_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, 4)[:, None] * SIZE + tl.arange(0, SIZE))
    tl.store(sums_ptr + tl.arange(0, 4), tl.sum(x, axis=1))
    tl.store(sums_ptr + 4 + tl.arange(0, 4), tl.reduce(x, 1, _adding))
    tl.store(sum_ptr, tl.sum(x))
    tl.store(running_ptr + tl.arange(0, 4)[:, None] * SIZE + tl.arange(0, SIZE), tl.associative_scan(x, 1, _adding))


def test_sums_are_those_of_pytorch():
    """Powers of two with small sums, which no order of adding rounds."""
    SIZE = 8
    x = (2.0 ** torch.arange(4).repeat(8).view(4, SIZE)).to(DEVICE, torch.bfloat16)
    x[1] *= -1
    sums, total, running = (torch.zeros(n, device=DEVICE, dtype=torch.bfloat16) for n in (8, 1, 4 * SIZE))
    _reduction_kernel[(1,)](x, sums, total, running, SIZE)
    assert sums.tolist() == 2 * x.sum(1).tolist() and total.item() == x.sum().item()
    assert running.view(4, SIZE).equal(x.cumsum(1))


@INTERPRETED
@pytest.mark.parametrize("name", ["create_dot", "create_fadd", "create_fcmpOLT", "cast_impl", "apply_impl"])
def test_without_it_the_interpreter_is_wrong(name, monkeypatch):
    """A release that gets bfloat16 right fails here: then this file and what it tests can go."""
    owner = interpreter.ReduceOps if name == "apply_impl" else BUILDER
    monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    test = {"create_dot": test_dot_is_exact_to_float32, "cast_impl": test_conversions_are_those_of_pytorch}
    test["apply_impl"] = test_sums_are_those_of_pytorch
    with pytest.raises(AssertionError):
        test.get(name, test_arithmetic_and_comparisons_are_those_of_pytorch)()


@INTERPRETED
def test_an_op_brings_it():
    """In a process that is told to interpret and does nothing else: 1 + 2^-8 is a tie, and -2 no large number."""
    program = "import torch, minillm_kernels as mk\nx = torch.tensor([1 + 2.0**-7, -2.0], dtype=torch.bfloat16)\n"
    program += "with mk.backend('fused'):\n    print(mk.relu(x, torch.tensor([-(2.0**-8), 1.0])).tolist())\n"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(mk.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "[1.0, 0.0]\n", done.stderr


@INTERPRETED
@pytest.mark.parametrize("missing, what", [("create_fma", "no create_fma"), (None, "get_bf16")])
def test_an_interpreter_of_another_form_is_refused(monkeypatch, missing, what):
    """One that lacks an operation, and one that has a bfloat16 of its own."""
    monkeypatch.setattr(interpreted, "_installed", False)
    if missing is not None:
        monkeypatch.delattr(BUILDER, missing)
    with pytest.raises(RuntimeError, match=rf"has {what}, .* try triton==3\.7\.1"):
        interpreted.install()


@INTERPRETED
def test_a_second_install_changes_nothing():
    changed = (BUILDER, interpreter.ReduceOps, interpreter)
    before = [dict(vars(owner)) for owner in changed]
    interpreted.install()
    assert [dict(vars(owner)) for owner in changed] == before


@triton.jit
def _twice(x):
    return tl.sum(x) + tl.sum(x)


@triton.jit
def _calling_kernel(x_ptr, y_ptr, CALLS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, 4))
    for _ in tl.static_range(CALLS):
        tl.store(y_ptr, tl.load(y_ptr) + _twice(x))


@INTERPRETED
def test_the_language_is_replaced_once_a_launch(monkeypatch):
    """However many device functions are called, and anew at the next launch, as it was put back."""
    count, patch_module = 0, interpreter._patch_builtin

    def counting(*values):
        nonlocal count
        count += 1
        patch_module(*values)

    monkeypatch.setattr(interpreter, "_patch_builtin", counting)
    found = {}
    for calls in (2, 1, 5):  # the first call of a function rewrites it, which shows it one module more
        count, y = 0, torch.zeros(1)
        _calling_kernel[(1,)](torch.ones(4), y, calls)
        assert y.item() == 8 * calls
        found[calls] = count
    assert found[1] == found[5] > 0


@INTERPRETED
def test_a_kernel_that_fails_leaves_no_trace():
    with pytest.raises(triton.runtime.errors.InterpreterError):
        _calling_kernel[(1,)](None, torch.zeros(1), 1)
    y = torch.zeros(1)
    _calling_kernel[(1,)](torch.ones(4), y, 2)
    assert y.item() == 16
