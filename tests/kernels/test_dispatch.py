"""dispatch: one decision for every op, said in words."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels import dispatch
from minillm_kernels.relu import composed, reference
from torch.autograd import forward_ad


@pytest.fixture
def taken(monkeypatch):
    """Return the list into which relu writes the backend that it took."""
    calls: list[str] = []
    for name, module in (("torch", composed), ("reference", reference)):
        monkeypatch.setattr(module, "relu", lambda x, *others, name=name: (calls.append(name), x)[1])
    return calls


@pytest.fixture
def relu_has_a_kernel(monkeypatch):
    monkeypatch.setattr(dispatch, "FUSED_OPS", frozenset({"relu"}))
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "INTERPRETED", False)


def decision(device="cpu"):
    return next(d for d in mk.explain_dispatch(device) if d.op == "relu")


def test_default_on_a_cpu_is_torch(taken):
    mk.relu(torch.ones(2))
    assert taken == ["torch"]


def test_backend_holds_inside_its_block_only(taken):
    with mk.backend("reference"):
        mk.relu(torch.ones(2))
        with mk.backend("torch"):
            mk.relu(torch.ones(2))
        mk.relu(torch.ones(2))
    mk.relu(torch.ones(2))
    assert taken == ["reference", "torch", "reference", "torch"]


def test_backend_of_named_ops_leaves_the_others():
    with mk.backend("reference"), mk.backend("torch", "relu", "gelu"):
        found = {d.op: d.backend for d in mk.explain_dispatch()}
    assert {op for op, name in found.items() if name == "torch"} == {"relu", "gelu"}
    assert set(found.values()) == {"torch", "reference"}
    assert {d.reason for d in mk.explain_dispatch()} == {"the default on cpu"}


def test_unknown_op_is_named():
    with pytest.raises(ValueError, match="linear_cross_entropy, got 'norm'"), mk.backend("torch", "relu", "norm"):
        pass


def test_backend_ends_when_the_block_fails(taken):
    with pytest.raises(KeyError), mk.backend("reference"):
        raise KeyError
    mk.relu(torch.ones(2))
    assert taken == ["torch"]


def test_backend_in_compiled_code_is_the_one_asked_for_now(taken):
    compiled = torch.compile(lambda x: mk.relu(x) + 1, backend="eager", fullgraph=True)
    x = torch.ones(2)
    compiled(x)
    with mk.backend("reference"):
        compiled(x)
    with mk.backend("reference", "gelu"):
        compiled(x)
    assert taken == ["torch", "reference", "torch"]  # traced once each: the state is guarded, not baked in
    torch._dynamo.reset()


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="fused, torch, reference, got 'cuda'"), mk.backend("cuda"):  # pyright: ignore
        pass


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_explanation_covers_every_op_in_reading_order(device):
    explained = [d.op for d in mk.explain_dispatch(device)]
    assert explained == [name for name in mk.__all__ if name in explained]
    helpers = {"attention_weights", "backend", "explain_dispatch", "Decision"}
    assert set(mk.__all__) - helpers == set(explained)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_explanation_names_what_was_asked_for(name):
    with mk.backend(name):
        assert {(d.backend, d.reason) for d in mk.explain_dispatch()} == {(name, "asked for")}


def test_op_without_a_kernel_takes_torch_and_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "FUSED_OPS", frozenset())
    with mk.backend("fused"):
        assert decision() == mk.Decision("relu", "torch", "no Triton kernel yet")


@pytest.mark.parametrize(
    "device, expected",
    [
        pytest.param("cuda", ("fused", "the default on a GPU"), id="gpu"),
        pytest.param("cpu", ("torch", "the default on cpu"), id="cpu"),
        pytest.param("mps", ("torch", "the default on mps"), id="apple"),
    ],
)
@pytest.mark.usefixtures("relu_has_a_kernel")
def test_kernel_is_the_default_on_a_gpu_only(device, expected):
    assert (decision(device).backend, decision(device).reason) == expected


@pytest.mark.usefixtures("relu_has_a_kernel")
def test_gpu_without_triton_takes_torch_and_says_why(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert decision("cuda") == mk.Decision("relu", "torch", "triton is not installed")


@pytest.mark.usefixtures("relu_has_a_kernel")
def test_kernel_asked_for_where_it_cannot_run_is_an_error():
    with mk.backend("fused"):
        with pytest.raises(ValueError, match="relu on cpu: .*TRITON_INTERPRET=1"):
            mk.relu(torch.ones(2))
        assert decision("cuda").backend == "fused"


@pytest.mark.usefixtures("relu_has_a_kernel")
def test_kernel_runs_interpreted_on_a_cpu_when_asked_for(monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    assert decision().backend == "torch"
    with mk.backend("fused"):
        assert decision() == mk.Decision("relu", "fused", "asked for")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
X, TARGETS = torch.linspace(-2.0, 2.0, 16, device=DEVICE).view(2, 8), torch.tensor([3, 0], device=DEVICE)
DIFFERENTIABLE = {
    "rms_norm": lambda x: mk.rms_norm(x, torch.ones_like(x[0])),
    "gelu": mk.gelu,
    "dropout": lambda x: mk.dropout(x, 0.5, 3),
    "embedding": lambda x: mk.embedding(TARGETS - TARGETS, x),
    "attention": lambda x: mk.attention(*[x.view(1, 2, 2, 4)] * 3, softcap=2.0),
    "cross_entropy": lambda x: mk.cross_entropy(x, TARGETS),
    "linear_cross_entropy": lambda x: mk.linear_cross_entropy(x, torch.eye(8, device=DEVICE), TARGETS),
    "linear_cross_entropy-rows": lambda x: mk.linear_cross_entropy(
        x, torch.eye(8, device=DEVICE), TARGETS, reduction="none"
    ),
}


BY_HAND = ("rms_norm", "attention")  # on the torch backend too: their backward passes, on a CPU
LINEAR = ("linear_cross_entropy", "linear_cross_entropy-rows")
DERIVED = sorted(DIFFERENTIABLE.keys() - {*BY_HAND, *LINEAR})
REFUSED = [(op, name) for op in DIFFERENTIABLE for name in ("fused", "reference")]
REFUSED += [(op, "torch") for op in (*LINEAR, *BY_HAND * (DEVICE == "cpu"))]
# PyTorch's own, for dual numbers
dual_numbers = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def directional(op: str, name: str, direction: Any) -> Any:
    """Return the derivative of an op along a direction, by forward mode."""
    with mk.backend(name), forward_ad.dual_level():  # pyright: ignore[reportArgumentType]
        return forward_ad.unpack_dual(DIFFERENTIABLE[op](forward_ad.make_dual(X, direction))).tangent


@dual_numbers
@pytest.mark.parametrize("op", DERIVED)
def test_forward_mode_derivative_is_that_of_reverse_mode(op):
    x, direction = X.clone().requires_grad_(), X.cos()
    y = DIFFERENTIABLE[op](x)
    dy = torch.ones_like(y).cumsum(-1) if y.ndim else torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, x, dy)
    found = directional(op, "torch", direction)
    torch.testing.assert_close((found * dy).sum(), (gradient * direction).sum())


@dual_numbers
@pytest.mark.parametrize("op, name", REFUSED)
def test_forward_mode_is_refused_where_there_is_no_derivative(op, name):
    """PyTorch's operators lose it without a word: a zero, or a constant."""
    with pytest.raises((RuntimeError, ValueError), match="forward"):
        directional(op, name, X.cos())


def test_forward_mode_takes_no_kernel_by_default():
    x: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    assert dispatch.choose("gelu", x) == ("fused" if dispatch.HAS_TRITON else "torch")
    with forward_ad.dual_level():
        assert dispatch.choose("gelu", x) == "torch"


@pytest.mark.usefixtures("relu_has_a_kernel")
def test_float64_takes_no_kernel(monkeypatch):
    """It would come back with float32's digits."""
    x: Any = SimpleNamespace(dtype=torch.float64, device=torch.device("cuda"))
    assert dispatch.choose("relu", x) == "torch"
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    with mk.backend("fused"), pytest.raises(ValueError, match="relu on cpu: float64 has no kernel; ask for 'torch'"):
        mk.relu(torch.ones(2, dtype=torch.float64))


def test_the_package_works_without_triton_and_does_not_import_it():
    """With triton hidden every op but `fused` ones runs; where it is there, importing the package leaves it alone."""
    program = "import sys, torch{hidden}\nimport minillm_kernels as mk\nloaded = 'triton' in sys.modules\n"
    program += "x = torch.ones(2, 3, requires_grad=True)\n"
    program += (
        "mk.linear_cross_entropy(mk.rms_norm(x, torch.ones(3)), torch.ones(5, 3), torch.tensor([1, 2])).backward()\n"
    )
    program += "q = torch.ones(1, 2, 1, 4)\nmk.attention(q, q, q, causal=True)\n{end}"
    for hidden, end in (
        ("; sys.modules['triton'] = None", "print(mk.dispatch.decide('attention', 'cuda').reason)"),
        ("", "print(loaded)"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program.format(hidden=hidden, end=end)],
            env={**os.environ, "PYTHONPATH": str(Path(mk.__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ("triton is not installed" if hidden else "False")


README = (Path(__file__).parents[2] / "kernels/README.md").read_text(encoding="utf-8")


def test_catalogue_has_every_op_in_reading_order():
    listed = re.findall(r"^\| `(\w+)` .*\|.*\|.*\|", README, flags=re.MULTILINE)
    helpers = ("backend", "explain_dispatch", "Decision")
    assert [name for name in listed if name not in ("fused", "torch", "reference")] == [
        name for name in mk.__all__ if name not in helpers
    ]


def test_example_of_the_readme_runs(capsys):
    exec(README.split("```python")[1].split("```")[0], {})
    assert "rms_norm torch" in capsys.readouterr().out
