"""philox against the published test vectors and against Triton's own `tl.rand`."""

import os
import subprocess
import sys

import pytest
import torch
from minillm_kernels import philox

# Counter, key and result of philox4x32-10 in the known-answer file of Random123, the authors' library.
KNOWN_ANSWERS = [
    pytest.param((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
    pytest.param(
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="all-bits-set"
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="digits-of-pi",
    ),
]

SEEDS = [0, 7, -1, 2**32 + 5, 2**63 - 1]
OFFSETS = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345, 2**62]

TRITON_PROGRAM = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(seed_ptr, offsets_ptr, out_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.rand(tl.load(seed_ptr), tl.load(offsets_ptr + offs)))

listed = torch.tensor({offsets})
offsets = torch.cat([listed, torch.arange(512 - len(listed))])
for seed in {seeds}:
    out = torch.empty(512)
    kernel[(1,)](torch.tensor([seed]), offsets, out, BLOCK=512)
    print(*out.view(torch.int32).tolist())
"""


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_four_words_are_the_published_ones(counter, key, expected):
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox.philox((c0, c1, c2, c3), key)) == expected


def test_uniform_is_bit_equal_to_triton(tmp_path):
    program = TRITON_PROGRAM.format(offsets=OFFSETS, seeds=SEEDS)
    path = tmp_path / "rand.py"  # a file, because Triton reads the kernel's source
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, path], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    offsets = torch.cat([torch.tensor(OFFSETS), torch.arange(512 - len(OFFSETS))])
    for seed, line in zip(SEEDS, done.stdout.splitlines(), strict=True):
        triton_bits = torch.tensor([int(number) for number in line.split()], dtype=torch.int32)
        assert torch.equal(philox.uniform(seed, offsets).view(torch.int32), triton_bits), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_may_be_a_tensor(seed):
    offsets = torch.tensor(OFFSETS)
    assert torch.equal(philox.uniform(seed, offsets), philox.uniform(torch.tensor(seed), offsets))


def test_uniform_is_uniform():
    numbers = philox.uniform(1, torch.arange(100_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0.0, max=1.0)
    chi_square = ((counts - 5000).square() / 5000).sum()
    assert chi_square < 43.8  # the 0.999 quantile with 19 degrees of freedom


@pytest.mark.parametrize("shape", [(1,), (3, 7, 11), (2, 40_000)], ids=["one", "ragged", "past-one-chunk"])
def test_keep_follows_the_linear_index(shape):
    count = torch.Size(shape).numel()
    expected = (philox.uniform(5, torch.arange(count)) >= 0.3).view(shape)
    assert torch.equal(philox.keep(shape, 0.3, 5, "cpu"), expected)
