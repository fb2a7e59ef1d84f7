"""cross_entropy: where a row is cut for accesses of 16 bytes, which no result shows."""

import pytest
import torch
import triton
import triton.language as tl
from minillm_kernels.cross_entropy.fused import cut

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _cut_kernel(x_ptr, parts_ptr, offset, num_cols, ALIGN: tl.constexpr):
    head, whole = cut(x_ptr + offset, num_cols, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    tl.store(parts_ptr, head)
    tl.store(parts_ptr + 1, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [0, 1])
def test_the_middle_of_a_row_starts_at_a_boundary_and_ends_are_short(base, dtype):
    x, parts = torch.empty(64, dtype=dtype, device=DEVICE)[base:], torch.empty(2, dtype=torch.int32, device=DEVICE)
    align = 16 // dtype.itemsize
    for offset in range(9):
        for V in (0, 1, 2, 7, 8, 9, 16, 17, 31):
            _cut_kernel[(1,)](x, parts, offset, V, ALIGN=align)
            head, whole = parts.tolist()
            assert 0 <= head < align and 0 <= V - head - whole < align
            assert whole % align == 0
            assert whole == 0 or (x[offset + head :].data_ptr() % 16) == 0
