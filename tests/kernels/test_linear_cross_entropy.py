"""linear_cross_entropy: cross_entropy of a product whose result is never there as a whole."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.linear_cross_entropy import composed
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = [  # of the targets, then C and V
    pytest.param((16,), 8, 64, id="aligned"),
    pytest.param((3, 7), 5, 101, id="ragged"),
    pytest.param((), 2, 3, id="one"),
    pytest.param((0,), 2, 3, id="no-row"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["sum", "mean", "none"]
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"z_loss": 0.01}, id="z-loss"),
    pytest.param({"softcap": 2.5}, id="softcap"),
    pytest.param({"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5}, id="all"),
]
BUDGETS = [pytest.param(None, id="one-chunk"), pytest.param(1, id="row-by-row"), pytest.param(3000, id="few-rows")]


def tensors(rows, C, V, *, bias=True) -> dict[str, Any]:
    """Return inputs of which every third target is ignored (with one row alone: none)."""
    torch.manual_seed(0)
    targets = torch.randint(V, rows)
    targets.view(-1)[1::3] = -100
    made = {"hidden": torch.randn(*rows, C), "weight": torch.randn(V, C), "targets": targets}
    return made | ({"bias": torch.randn(V)} if bias else {})


def product_then_loss(hidden, weight, targets, bias=None, **options):
    """Return the definition, which holds all the logits."""
    logits = hidden @ weight.T
    return mk.cross_entropy(logits if bias is None else logits + bias, targets, **options)


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [pytest.param({}, id="plain"), OPTIONS[-1]])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("rows, C, V", SHAPES)
def test_it_is_cross_entropy_of_the_product(outputs_and_gradients, rows, C, V, options, bias, reduction, name):
    made = {key: t.double() if t.is_floating_point() else t for key, t in tensors(rows, C, V, bias=bias).items()}
    expected = outputs_and_gradients(product_then_loss, made, reduction=reduction, **options)
    with mk.backend(name):
        found = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_backward_is_the_derivative(gradcheck, options, reduction):
    gradcheck(mk.linear_cross_entropy, tensors((4,), 3, 5), reduction=reduction, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_by_chunks_is_the_derivative(reduction):
    """The `torch` backend too has a backward by hand."""
    made = tensors((4,), 3, 5)
    inputs = [made[key].double().requires_grad_() for key in ("hidden", "weight", "bias")]

    def loss(hidden, weight, bias):
        return mk.linear_cross_entropy(
            hidden, weight, made["targets"], bias=bias, reduction=reduction, z_loss=0.1, softcap=2.5, memory_budget=1
        )

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("master", [False, True], ids=["one-dtype", "float32-weight"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rows, C, V", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, rows, C, V, options, master, reduction, dtype):
    cast = ("hidden",) if master else ("hidden", "weight", "bias")
    made = tensors(rows, C, V)
    if master and dtype != torch.float32:  # the product is taken in the dtype of hidden: the weight's other digits go
        made = {key: t.to(dtype).to(t.dtype) for key, t in made.items()}
    # terms: logits of size 3 are rounded to the dtype of hidden before they enter the loss
    compare(mk.linear_cross_entropy, made, dtype, cast, reduction=reduction, terms=3.0, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_budget_changes_nothing_but_rounding(outputs_and_gradients, budget, reduction, dtype):
    made = {key: t.to(dtype) if key == "hidden" else t for key, t in tensors((3, 7), 5, 101).items()}
    options: dict[str, Any] = {"reduction": reduction, "z_loss": 0.01, "softcap": 2.5, "label_smoothing": 0.1}
    whole = outputs_and_gradients(mk.linear_cross_entropy, made, memory_budget=2**30, **options)
    found = outputs_and_gradients(mk.linear_cross_entropy, made, memory_budget=budget, **options)
    for name, t in whole.items():  # sums of 21 rows in another order, in float32 or rounded to the dtype per chunk
        allowed = 8 * torch.finfo(dtype).eps * t.abs().max()
        assert (found[name] - t).abs().max() <= allowed, name


class Watch(TorchDispatchMode):
    """Records, while on, the number of elements of the largest tensor made and the rows of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.product_rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.numel())
        if func.overloadpacket in (torch.ops.aten.matmul, torch.ops.aten.addmm_):  # as `walk` calls them, without bias
            self.product_rows.append(len(result))
        return result


@pytest.fixture
def inside(monkeypatch):
    """Return a watch of what happens inside the operator, which a mode around it takes for one step."""
    watch, inner = Watch(), composed.walk

    def watched(*args):
        with watch:
            return inner(*args)

    monkeypatch.setattr(composed, "walk", watched)
    return watch


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("budget_rows", [1, 16, 100], ids=lambda rows: f"{rows}-rows")
def test_it_never_holds_all_the_logits(inside, budget_rows, reduction):
    N, C, V = 257, 4, 512
    made = tensors((N,), C, V, bias=False)
    made["targets"] = made["targets"].clamp(min=0)
    hidden, weight = made["hidden"].requires_grad_(), made["weight"].requires_grad_()
    with Watch() as outside:
        loss = mk.linear_cross_entropy(
            hidden, weight, made["targets"], reduction=reduction, memory_budget=budget_rows * V * torch.float32.itemsize
        )
        loss.sum().backward()
    allowed = max(budget_rows * V, V * C, N * C)
    assert 0 < inside.largest <= allowed < N * V
    assert outside.largest <= max(V * C, N * C)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_ignored_rows_cost_no_product(inside, count):
    N, C, V = 200, 4, 32
    made = tensors((N,), C, V, bias=False)
    made["targets"] = torch.full((N,), -100)
    made["targets"][torch.randperm(N)[:count]] = 3
    mk.linear_cross_entropy(made["hidden"].requires_grad_(), made["weight"].requires_grad_(), made["targets"])
    assert inside.product_rows == [count, count, V]  # logits, dhidden, dweight


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored_gives_zero_and_zero_gradients(outputs_and_gradients, reduction, name):
    made = tensors((3, 7), 5, 11)
    made["targets"] = torch.full((3, 7), -100)
    with mk.backend(name):
        found = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction, z_loss=0.1)
    assert {"dhidden", "dweight", "dbias"} < found.keys()
    assert all((t == 0).all() for t in found.values())


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_input_gets_no_gradient_and_changes_no_other(frozen, reduction, name):
    made = tensors((3, 7), 5, 11)
    keys = ("hidden", "weight", "bias")
    found = []
    with mk.backend(name):
        for still in ((), (frozen,)):
            leaves = {key: made[key].clone().requires_grad_(key not in still) for key in keys}
            mk.linear_cross_entropy(**leaves, targets=made["targets"], reduction=reduction).sum().backward()
            found.append({key: leaf.grad for key, leaf in leaves.items()})
    assert found[1].pop(frozen) is None
    torch.testing.assert_close(found[1], {key: grad for key, grad in found[0].items() if key != frozen})


def test_no_grad_computes_the_loss_alone(monkeypatch):
    made = tensors((3, 7), 5, 11)
    wanted = []
    inner = composed.walk
    monkeypatch.setattr(composed, "walk", lambda *args: (wanted.append(tuple(args[-1])), inner(*args))[1])
    made["weight"].requires_grad_()
    with torch.no_grad():
        loss = mk.linear_cross_entropy(**made)
    torch.testing.assert_close(loss, mk.linear_cross_entropy(**made).detach())
    assert wanted == [(False, False, False), (False, True, False)]


def test_loss_may_be_scaled_before_backward():
    """A GradScaler's factor, or one micro-batch's share."""
    made = tensors((3, 7), 5, 11)
    weight = made["weight"].requires_grad_()
    (plain,) = torch.autograd.grad(mk.linear_cross_entropy(**made), weight)
    (scaled,) = torch.autograd.grad(mk.linear_cross_entropy(**made) * 1024, weight)
    assert torch.equal(scaled, plain * 1024)


def test_float16_gradients_survive_until_the_scale_comes(outputs_and_gradients):
    """A mean over many rows of a wide vocabulary has gradients below 6e-8, where float16 ends."""
    hidden, weight = torch.ones(64, 4).half(), torch.zeros(50_000, 4).half()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = mk.linear_cross_entropy(hidden, weight, torch.zeros(64).long(), reduction="mean")
    (loss * 2.0**16).backward()
    assert weight.grad is not None
    expected = torch.full((49_999, 4), 2.0**16 / 50_000)
    torch.testing.assert_close(weight.grad[1:].float(), expected, rtol=2**-10, atol=0)


@pytest.mark.parametrize("view", [lambda t: t.transpose(0, 1), lambda t: t[::2, 1:8:3]], ids=["transposed", "sliced"])
def test_strided_input(compare, view):
    hidden = view(torch.randn(9, 8, 6))
    made = {"hidden": hidden, "weight": torch.randn(6, 11).T, "bias": torch.randn(22)[::2]}
    made["targets"] = torch.randint(11, (*hidden.shape[:-1], 2))[..., 0]
    for reduction in ("sum", "none"):
        compare(mk.linear_cross_entropy, made, torch.float32, (), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_as_one_graph(reduction):
    made = tensors((3, 7), 5, 11)
    options = {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5, "reduction": reduction, "memory_budget": 200}
    found = []
    for op in (mk.linear_cross_entropy, torch.compile(mk.linear_cross_entropy, backend="aot_eager", fullgraph=True)):
        leaves = {key: made[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")}
        loss = op(**leaves, targets=made["targets"], **options).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(found[1], found[0])


def test_operators_keep_the_rules_of_torch_library():
    made = tensors((7,), 5, 11)
    inputs = [
        made[key].requires_grad_(made[key].is_floating_point()) for key in ("hidden", "weight", "bias", "targets")
    ]
    options = (-100, 0.1, 0.01, 2.5, 200)
    # The gradients that _total returns cannot be differentiated, as opcheck's test of tracing would do; instead of it
    # there is test_compiles_as_one_graph.
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(composed._total, (*inputs, *options, [True, True, True]), test_utils=rules)
    torch.library.opcheck(composed._losses, (*inputs, *options))


def test_second_derivative_is_an_error():
    made = tensors((3, 7), 5, 11)
    hidden = made["hidden"].requires_grad_()
    (dhidden,) = torch.autograd.grad(mk.linear_cross_entropy(**made), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dhidden.sum().backward()


H = torch.zeros(2, 3)
W = torch.zeros(5, 3)
T = torch.tensor([0, 4])


@pytest.mark.parametrize(
    "change, error, text",
    [
        pytest.param({"hidden": H.long()}, TypeError, "hidden must be .* got torch.int64", id="hidden-dtype"),
        pytest.param({"weight": W.int()}, TypeError, "weight must be .* got torch.int32", id="weight-dtype"),
        pytest.param({"weight": W[0]}, ValueError, r"weight must be \(V, C\), got \(3,\)", id="weight-rank"),
        pytest.param({"hidden": H[:, :2]}, ValueError, r"hidden must be \(2, 3\), with .* got \(2, 2\)", id="hidden"),
        pytest.param({"bias": H[0]}, ValueError, r"bias must be \(5,\), one per row of weight, got \(3,\)", id="bias"),
        pytest.param({"bias": T}, TypeError, "bias must be .* got torch.int64", id="bias-dtype"),
        pytest.param({"targets": T[:1]}, ValueError, r"targets must be \(2,\), one .* got \(1,\)", id="targets"),
        pytest.param({"targets": T.int()}, TypeError, "targets must be int64", id="targets-dtype"),
        pytest.param({"targets": T + 1}, ValueError, r"\[0, 5\) or ignore_index \(-100\), got 5 at \[1\]", id="high"),
        pytest.param({"reduction": "max"}, ValueError, "'sum', 'mean' or 'none', got 'max'", id="reduction"),
        pytest.param({"memory_budget": 0}, ValueError, "memory_budget must be at least 1 byte, got 0", id="budget"),
        pytest.param({"weight": W.to("meta")}, ValueError, "weight is on meta, hidden on cpu", id="device"),
    ],
)
def test_mistake_is_one_line(change, error, text):
    with pytest.raises(error, match=text) as raised:
        mk.linear_cross_entropy(**({"hidden": H, "weight": W, "targets": T} | change))
    assert "\n" not in str(raised.value)
