"""num_tiles at lengths near what 32 bits hold, where `tl.cdiv` wraps."""

import pytest
import torch
import triton
import triton.language as tl
from minillm_kernels import dispatch
from minillm_kernels.tiles import num_tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 2048


@triton.jit
def count(length, out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr, num_tiles(length, BLOCK))


@pytest.mark.parametrize(
    "length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2**31 - BLOCK, 2**31 - BLOCK + 1, 2**31 - 1, 2**31, 2**40 + 1]
)
def test_last_tile_begins_inside_of_the_length(length):
    found = torch.zeros((), dtype=torch.int64, device=DEVICE)
    dispatch.launches(found)  # puts the interpreter right, where it is what runs
    count[(1,)](length, found, BLOCK)
    assert (found - 1) * BLOCK < length <= found * BLOCK
