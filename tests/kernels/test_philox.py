"""philox against the published test vectors, and the kernels' elements against its definition."""

import os
import subprocess
import sys

import pytest
import torch
from minillm_kernels import philox

# Counter, key and result of philox4x32-7 in the known-answer file of Random123, the authors' library.
KNOWN_ANSWERS = [
    pytest.param((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48), id="zeros"),
    pytest.param(
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662), id="all-bits-set"
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        id="digits-of-pi",
    ),
]

SEEDS = [0, 7, -1, 2**32 + 5, 2**63 - 1]
ROWS = [0, 1, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 12345]

PROBABILITIES = [0.0, 0.1, 1 / 3, 0.5, 0.9]

TRITON_PROGRAM = """
import torch, triton, triton.language as tl
from minillm_kernels.philox_tiles import kept_row, kept_tile, kept_tile_across

@triton.jit
def kernel(seed_ptr, p, row_ptr, tile_ptr, across_ptr, last_ptr, START: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    seed, offs_r, offs_c = tl.load(seed_ptr), tl.arange(0, R), tl.arange(0, C)
    rows = tl.load(row_ptr + offs_r)
    place = offs_r[:, None] * C + offs_c[None, :]
    tl.store(tile_ptr + place, kept_tile(seed, rows[:, None], START, p, R, C))
    place = offs_c[:, None] * R + offs_r[None, :]
    tl.store(across_ptr + place, kept_tile_across(seed, rows[None, :], START, p, R, C))
    tl.store(last_ptr + offs_c, kept_row(seed, tl.load(row_ptr + R - 1), START, p, C))

rows = torch.tensor({rows})
for seed in {seeds}:
    for p in {probabilities}:
        tile, across, last = (torch.empty(shape, dtype=torch.bool) for shape in ((8, 16), (16, 8), (16,)))
        kernel[(1,)](torch.tensor([seed]), p, rows, tile, across, last, START=24, R=8, C=16)
        assert torch.equal(tile, across.T) and torch.equal(tile[-1], last)
        print(*tile.int().flatten().tolist())
"""


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_four_words_are_the_published_ones(counter, key, expected):
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox.philox((c0, c1, c2, c3), key)) == expected


def by_definition(seed: int, row: int, column: int) -> float:
    """Equation (3), an element at a time; the seven rounds are those that the published answers check."""
    counter = tuple(torch.tensor([word]) for word in (column // 8, 0, row % 2**32, row // 2**32))
    word = int(philox.philox(counter, (seed % 2**32, seed % 2**64 // 2**32))[column % 8 // 2])
    return (word // 2**16 if column % 2 else word % 2**16) / 2**16


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (2, 3, 7), (5,), ()], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_is_its_definition(seed, shape):
    columns = shape[-1] if shape else 1
    numbers = philox.uniform(seed, shape)
    assert numbers.shape == shape
    places = [divmod(place, columns) for place in range(numbers.numel())]
    assert numbers.flatten().tolist() == [by_definition(seed, row, column) for row, column in places]


def test_kernels_keep_the_same_elements(tmp_path):
    """Tiles that begin at column 24, of rows beyond 2**32: by the definition, whichever way the tile lies."""
    pytest.importorskip("triton", reason="there is no Triton for this system")
    path = tmp_path / "kept.py"  # a file, because Triton reads the kernel's source
    path.write_text(TRITON_PROGRAM.format(rows=ROWS, seeds=SEEDS, probabilities=PROBABILITIES))
    done = subprocess.run(
        [sys.executable, path], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = iter(done.stdout.splitlines())
    for seed in SEEDS:
        numbers = [by_definition(seed, row, column) for row in ROWS for column in range(24, 40)]
        for p in PROBABILITIES:
            assert [int(number >= p) for number in numbers] == [int(bit) for bit in next(lines).split()], (seed, p)


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_may_be_a_tensor(seed):
    assert torch.equal(philox.uniform(seed, (3, 9)), philox.uniform(torch.tensor(seed), (3, 9)))


def test_uniform_is_uniform():
    numbers = philox.uniform(1, (100, 1000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0.0, max=1.0)
    chi_square = ((counts - 5000).square() / 5000).sum()
    assert chi_square < 43.8  # the 0.999 quantile with 19 degrees of freedom


def test_neighbours_in_a_block_know_nothing_of_each_other():
    """Correlations between the eight numbers of 25,000 blocks: standard errors of 0.0063, so 0.025 is four of them."""
    numbers = philox.uniform(2, (25_000, 8)).double()
    correlation = torch.corrcoef(numbers.T) - torch.eye(8)
    assert correlation.abs().max() < 0.025


SHAPES = [(1,), (), (3, 7, 11), (0, 5), (5, 0), (2, 300_000), (1, 600_001), (40_000, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keep_is_where_the_number_is_not_below_p(shape):
    """Also past one chunk, which is some 130,000 elements a thread, of long rows and of many."""
    assert torch.equal(philox.keep(shape, 0.3, 5, "cpu"), philox.uniform(5, shape) >= 0.3)


@pytest.mark.parametrize("p", [0.0, 1e-12, 2**-16, 0.1, 1 / 3, 0.5, 0.75, 0.5 + 2**-20, 1 - 2**-16, 0.9999999])
def test_words_are_compared_as_numbers_are(p):
    """Also of a probability that float32 rounds: a kernel is given it in that."""
    assert torch.equal(philox.keep((1000, 700), p, 5, "cpu"), philox.uniform(5, (1000, 700)) >= p)
