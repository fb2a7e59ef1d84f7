"""checks: every mistake is one line that says what was asked, what came and, where that helps, what to do."""

import pytest
import torch
from minillm_kernels import checks

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, text",
    [
        pytest.param(lambda: checks.floating("x", X.long()), TypeError, "x must be .*, got torch.int64", id="floating"),
        pytest.param(
            lambda: checks.rank("q", X, "B T H D"), ValueError, r"q must be \(B, T, H, D\), got \(2, 3\)", id="rank"
        ),
        pytest.param(
            lambda: checks.shape("w", X, (3,), "one per column"),
            ValueError,
            r"w must be \(3,\), one per column, got \(2, 3\)",
            id="shape",
        ),
        pytest.param(
            lambda: checks.same_device("x", X, w=X.to("meta")), ValueError, "w is on meta, x on cpu; move", id="device"
        ),
        pytest.param(
            lambda: checks.same_dtype("x", X, w=X.half()), TypeError, "w is torch.float16, x torch.float32", id="dtype"
        ),
        pytest.param(
            lambda: checks.columns("x", X[0, 0], "C"), ValueError, r"x must be \(..., C\), got a number", id="columns"
        ),
        pytest.param(
            lambda: checks.indices("i", torch.tensor([2, -1]), 3, "the rows"),
            ValueError,
            r"i must be in \[0, 3\), the rows, got -1 to 2",
            id="indices",
        ),
        pytest.param(lambda: checks.probability("p", 1.0), ValueError, r"p must be in \[0, 1\), got 1.0", id="one"),
        pytest.param(lambda: checks.probability("p", float("nan")), ValueError, "got nan", id="nan"),
        pytest.param(lambda: checks.dropout(-0.1, 1), ValueError, "dropout_p must be .* got -0.1", id="negative"),
        pytest.param(lambda: checks.dropout(0.5, None), ValueError, "dropout_p=0.5 needs a seed", id="no-seed"),
        pytest.param(lambda: checks.dropout(0.5, 1.5), TypeError, "seed must be an int .* got float", id="float-seed"),
        pytest.param(
            lambda: checks.dropout(0.5, torch.tensor([1, 2])), TypeError, r"got torch.int64 \(2,\)", id="many-seeds"
        ),
        pytest.param(
            lambda: checks.dropout(0.5, torch.tensor(1.0)), TypeError, r"got torch.float32 \(\)", id="float-tensor"
        ),
    ],
)
def test_mistake_is_one_line(call, error, text):
    with pytest.raises(error, match=text) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_what_is_right_passes():
    for dtype in checks.FLOATS:
        checks.floating("x", X.to(dtype))
    checks.rank("x", X, "B C")
    checks.shape("x", X, (2, 3), "the shape of x")
    checks.same_device("x", X, w=None, b=X)
    checks.same_dtype("x", X, w=None, b=X)
    checks.dropout(0.0, None)
    checks.dropout(0.5, 3)
    checks.dropout(0.5, torch.tensor(3))
