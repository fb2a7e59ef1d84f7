"""The counted work of a step: bytes against counts by hand, operations against torch's counter."""

import minillm_kernels as mk
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.work import Work, counted

X, Y = torch.randn(2, 3), torch.randn(2, 3)  # 24 bytes each

CASES = [
    pytest.param(lambda: X + Y, Work(72, 0), id="sum"),
    pytest.param(lambda: X.clone().add_(Y), Work(24 + 24 + 24 + 24 + 24, 0), id="in-place"),
    pytest.param(lambda: X.T.reshape(3, 2, 1)[1:], Work(0, 0), id="views"),
    pytest.param(lambda: torch.empty(100), Work(0, 0), id="no-content"),
    pytest.param(lambda: X + torch.ones(3).expand(2, 3), Work(12 + 24 + 12 + 24, 0), id="broadcast"),
    pytest.param(lambda: X.to(torch.bfloat16), Work(24 + 12, 0), id="cast"),
    pytest.param(lambda: X @ Y.T, Work(0, 2 * 2 * 3 * 2), id="product"),
    pytest.param(lambda: torch.cat([X, Y]), Work(96, 0), id="several"),
]


@pytest.mark.parametrize("call, expected", CASES)
def test_work_is_that_by_hand(call, expected):
    assert counted(call) == expected


def test_backward_pass_counts_too():
    leaf = X.clone().requires_grad_()
    assert counted(lambda: (leaf @ Y.T).sum().backward()).flops == 2 * 24  # dY is not wanted


def test_optimisers_read_and_write_their_state():
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.grad = torch.ones(1000)
    optimiser = torch.optim.AdamW([weight], fused=True)
    optimiser.step()
    # weight, gradient and two moments read; all but the gradient written (and the step's number)
    assert counted(optimiser.step).num_bytes == pytest.approx((4 + 3) * 4000, rel=0.2)


def test_single_ops_of_rms_norm_move_14_times_and_the_kernel_4_times_the_elements():
    """What kernels/README.md says of rms_norm with a residual in bfloat16; weights and statistics are 1 % of it."""
    x, residual, weight = torch.randn(64, 256).bfloat16(), torch.randn(64, 256).bfloat16(), torch.ones(256)
    for name, times in (("torch", 14), ("fused", 4)):
        with mk.backend(name), torch.no_grad():
            work = counted(lambda: mk.rms_norm(x, weight, residual=residual))
        assert work.num_bytes / (2 * x.numel()) == pytest.approx(times, rel=0.03)


@pytest.mark.parametrize("name", ["reference", "fused"])
@pytest.mark.parametrize("op", ["attention", "linear_cross_entropy"])
def test_operations_are_those_of_torchs_counter(op, name):
    q, weight = torch.randn(1, 8, 2, 16, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    targets = torch.zeros(16, dtype=torch.int64)
    call = {
        "attention": lambda: mk.attention(q, q, q, causal=True).sum().backward(),
        "linear_cross_entropy": lambda: mk.linear_cross_entropy(q.view(16, 16), weight, targets).backward(),
    }[op]
    with mk.backend(name):
        call()  # torch's counter knows the formulas that there are when it is made, and kernels are imported when used
        counter = FlopCounterMode(display=False)
        with counter:
            call()
        assert counted(call).flops == counter.get_total_flops() > 0
