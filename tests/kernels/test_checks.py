"""checks: every mistake is one line that says what was asked, what came and, where that helps, what to do."""

from typing import Any

import minillm_kernels as mk
import numpy as np
import pytest
import torch
from minillm_kernels import checks, dispatch

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
        pytest.param(lambda: checks.whole("n", X), TypeError, r"n must be an int, got a tensor \(2, 3\);", id="whole"),
        pytest.param(lambda: checks.whole("n", 2**63), ValueError, "n must be an int of 64 bits, got 9", id="long"),
        pytest.param(lambda: checks.finite("scale", 10**30), ValueError, "scale must be .* of 64 bits", id="too-long"),
        pytest.param(lambda: checks.softcap(0.0), ValueError, "softcap must be above 0 .*, got 0.0; None", id="cap"),
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
    checks.number("scale", np.float32(-0.5))
    checks.not_negative("eps", 0)
    checks.softcap(None)


ROWS = torch.zeros(4, 3)
Q, NUMBER, TARGETS = torch.zeros(1, 2, 4, 6), torch.ones(1).long(), torch.tensor([0, 2])
NORM: dict[str, Any] = {"x": X, "weight": X[0], "bias": X[0], "residual": X}
LOSS: dict[str, Any] = {"targets": TARGETS}
MASKS: dict[str, Any] = {
    "key_start": NUMBER,
    "key_stop": NUMBER,
    "prefix": NUMBER,
    "segments": torch.zeros(1, 2).long(),
}
MASKS |= {"cu_seqlens_q": TARGETS, "cu_seqlens_k": TARGETS, "alibi_slopes": torch.zeros(4), "bias": Q[:, :, :, :2].mT}
TENSORS: dict[str, dict[str, Any]] = {
    "rms_norm": NORM,
    "layer_norm": NORM,
    "relu": {"x": X, "bias": X[0]},
    "gelu": {"x": X, "bias": X[0]},
    "relu2": {"x": X, "bias": X[0]},
    "swiglu": {"gate": X, "up": X},
    "geglu": {"gate": X, "up": X},
    "rotary": {"q": Q, "k": Q, "cos": ROWS, "sin": ROWS, "positions": torch.zeros(1, 2).long()},
    "dropout": {"x": X},
    "embedding": {"tokens": TARGETS, "weight": X},
    "attention": {"q": Q, "k": Q, "v": Q} | MASKS,
    "attention_weights": {"q": Q, "k": Q} | MASKS,
    "cross_entropy": {"logits": X, **LOSS},
    "linear_cross_entropy": {"hidden": X, "weight": ROWS, "bias": torch.zeros(4), **LOSS},
}
NUMBERS = {  # of each op: what must be a finite number, and a value below its least
    "rms_norm": {"eps": -1e-6, "dropout_p": -0.1},
    "layer_norm": {"eps": -1e-6, "dropout_p": -0.1},
    "relu": {"dropout_p": -0.1},
    "gelu": {"dropout_p": -0.1},
    "relu2": {"dropout_p": -0.1},
    "swiglu": {"dropout_p": -0.1},
    "geglu": {"dropout_p": -0.1},
    "dropout": {"p": -0.1},
    "attention": {"scale": None, "softcap": 0.0, "dropout_p": -0.1},
    "attention_weights": {"scale": None, "softcap": 0.0},
    "cross_entropy": {"label_smoothing": -0.1, "z_loss": -0.1, "softcap": 0.0},
    "linear_cross_entropy": {"label_smoothing": -0.1, "z_loss": -0.1, "softcap": 0.0},
}
REQUIRED = ("x", "weight", "gate", "up", "q", "k", "v", "cos", "sin", "tokens", "logits", "hidden", "targets")


def call(op: str, change: dict[str, Any]) -> None:
    """Call an op with the tensors that it needs, all of one shape that fits, and with those that are changed."""
    tensors = {name: t for name, t in TENSORS[op].items() if name in REQUIRED} | change
    more = {"cu_seqlens_q": TARGETS} if "cu_seqlens_k" in change else {}
    options: dict[str, Any] = {"p": 0.5, "seed": 1} if op == "dropout" else {}
    getattr(mk, op)(**(options | more | tensors))


def test_every_op_is_asked():
    assert set(TENSORS) == {*dispatch.OPS, "attention_weights"}


@pytest.mark.parametrize(
    "value", [[[0.0] * 3] * 2, np.zeros((2, 3)), 0.5, None], ids=["list", "numpy", "number", "none"]
)
@pytest.mark.parametrize("op, name", [(op, name) for op, tensors in TENSORS.items() for name in tensors])
def test_what_is_no_tensor_is_told_in_one_line(op, name, value):
    if value is None and name not in REQUIRED:
        return call(op, {name: None})
    kind = None if value is None else type(value).__name__ if not isinstance(value, float) else value
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got {kind}; ") as raised:
        call(op, {name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("op, name", [(op, name) for op, names in NUMBERS.items() for name in names])
def test_what_is_no_finite_number_is_told_in_one_line(op, name):
    least = NUMBERS[op][name]
    for value in (float("nan"), float("inf"), -float("inf"), 2**70, *([] if least is None else [least])):
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}|^{name} must be finite, got {value}"):
            call(op, {name: value})
    for value in ("x", 1j, torch.tensor(0.5), [0.5]):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got .*; convert it with float") as raised:
            call(op, {name: value})
        assert "\n" not in str(raised.value)
