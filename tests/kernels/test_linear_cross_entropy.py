"""linear_cross_entropy: cross_entropy of a product whose result is never there as a whole; what it computes."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from linear_cross_entropy_cases import BACKENDS, DEVICE, NAME_AND_DTYPE, REDUCTIONS, product_then_loss, tensors
from minillm_kernels.cross_entropy import targets as target_checks
from minillm_kernels.linear_cross_entropy import chunks
from torch.nn import functional

SHAPES = [  # of the targets, then C and V
    pytest.param((16,), 8, 64, id="aligned"),
    pytest.param((3, 7), 5, 101, id="ragged"),
    pytest.param((), 2, 3, id="one"),
    pytest.param((0,), 2, 3, id="no-row"),
]
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"z_loss": 0.01}, id="z-loss"),
    pytest.param({"softcap": 2.5}, id="softcap"),
    pytest.param({"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5}, id="all"),
]


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


@pytest.mark.parametrize("name, dtype", NAME_AND_DTYPE)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("master", [False, True], ids=["one-dtype", "float32-weight"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rows, C, V", SHAPES)
def test_backend_is_as_close_to_truth_as_reference(
    compare, poisoned, rows, C, V, options, master, reduction, name, dtype
):
    cast = ("hidden",) if master else ("hidden", "weight", "bias")
    made = tensors(rows, C, V)
    if master and dtype != torch.float32:  # the product is taken in the dtype of hidden: the weight's other digits go
        made = {key: t.to(dtype).to(t.dtype) for key, t in made.items()}
    # terms: logits of size 3 are rounded to the dtype of hidden before they enter the loss
    compare(mk.linear_cross_entropy, made, dtype, cast, reduction=reduction, terms=3.0, name=name, **options)


@pytest.mark.parametrize("V", [1, 2, 17, 1000, 4097])
def test_kernel_takes_any_number_of_classes(compare, poisoned, V):
    options: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5, "memory_budget": 4 * V * 4}
    for reduction in ("sum", "none"):
        made = tensors((7,), 5, V)
        compare(mk.linear_cross_entropy, made, torch.float32, (), reduction=reduction, name="fused", **options)


def test_kernel_gives_the_same_bits_twice(outputs_and_gradients):
    made = tensors((30,), 5, 1001)
    for reduction in REDUCTIONS:
        with mk.backend("fused"):
            first, second = (
                outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction, memory_budget=40_000)
                for _ in range(2)
            )
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_may_be_called_twice(name, reduction):
    made = tensors((7,), 5, 11)
    weight = made["weight"].requires_grad_()
    with mk.backend(name):
        loss = mk.linear_cross_entropy(**made, reduction=reduction).sum() * 3
        (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
        (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_float16_kernel_takes_any_upstream_gradient(outputs_and_gradients, reduction):
    """Its dlogits are scaled so that the size of the upstream gradient neither overflows nor flushes them."""
    made = {key: t.half() if t.is_floating_point() else t for key, t in tensors((9,), 4, 300).items()}
    for factor in (0.0, 2.0**-16, 1.0, 2.0**10):
        found = []
        for name in ("reference", "fused"):
            leaves = {key: made[key].float().requires_grad_() for key in ("hidden", "weight", "bias")}
            halves = {key: leaf.half() for key, leaf in leaves.items()}
            halves["weight"] = leaves["weight"]  # a master weight: its gradient is float32
            with mk.backend(name):
                loss = mk.linear_cross_entropy(**halves, targets=made["targets"], reduction=reduction)
            found.append(torch.autograd.grad(loss.sum() * factor, leaves["weight"])[0])
        assert (found[1] - found[0]).abs().max() <= 2**-10 * found[0].abs().max()


def test_target_that_nobody_looked_for_gives_nan():
    """On a GPU a wrong target is not looked for: no address outside of its row is read, and the loss shows it."""
    from minillm_kernels.linear_cross_entropy import fused

    for wrong in (-1, 5, 2**40):
        logits = torch.zeros(2, 5, device=DEVICE)
        targets = torch.tensor([wrong, 1], device=DEVICE)
        losses, dlogits = fused.losses_and_dlogits(logits, targets, None, (-100, 0.0, 0.0, None), True)
        assert losses.isnan().tolist() == [True, False]
        assert dlogits.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("name", BACKENDS)
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


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_loss_may_be_scaled_before_backward(name):
    """A GradScaler's factor, or one micro-batch's share."""
    made = tensors((3, 7), 5, 11)
    weight = made["weight"].requires_grad_()
    with mk.backend(name):
        (plain,) = torch.autograd.grad(mk.linear_cross_entropy(**made), weight)
        (scaled,) = torch.autograd.grad(mk.linear_cross_entropy(**made) * 1024, weight)
    assert torch.equal(scaled, plain * 1024)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_float16_gradients_survive_until_the_scale_comes(name):
    """A mean over many rows of a wide vocabulary has gradients below 6e-8, where float16 ends."""
    hidden, weight = (t.half().to(DEVICE).requires_grad_() for t in (torch.ones(16, 4), torch.zeros(50_000, 4)))
    with mk.backend(name):
        loss = mk.linear_cross_entropy(hidden, weight, torch.zeros(16).long().to(DEVICE), reduction="mean")
    (loss * 2.0**16).backward()
    assert weight.grad is not None
    expected = torch.full((49_999, 4), 2.0**16 / 50_000)
    torch.testing.assert_close(weight.grad[1:].float().cpu(), expected, rtol=2**-10, atol=0)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_gradient_of_a_float32_bias_has_more_digits_than_a_narrow_hidden(name):
    """Of 400 rows each rounded by 2^-9 at most the sum is off by a twentieth of that; rounded itself, by up to all."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(400, 4, device=DEVICE).bfloat16(), torch.randn(7, 4, device=DEVICE).bfloat16()
    bias, targets = torch.randn(7, device=DEVICE).bfloat16().float(), torch.zeros(400, device=DEVICE).long()
    bias.requires_grad_()
    with mk.backend(name):
        loss = mk.linear_cross_entropy(hidden, weight, targets, bias=bias)
    (found,) = torch.autograd.grad(loss, bias)
    logits = torch.addmm(bias.detach().bfloat16(), hidden, weight.T)  # whose own rounding is no part of the claim
    truth = logits.double().softmax(-1).sum(0) - functional.one_hot(targets, 7).sum(0)
    torch.testing.assert_close(found.double(), truth, rtol=2**-11, atol=0)


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("view", [lambda t: t.transpose(0, 1), lambda t: t[::2, 1:8:3]], ids=["transposed", "sliced"])
def test_strided_input(compare, view, name):
    hidden = view(torch.randn(9, 8, 6))
    made = {"hidden": hidden, "weight": torch.randn(6, 11).T, "bias": torch.randn(22)[::2]}
    made["targets"] = torch.randint(11, (*hidden.shape[:-1], 2))[..., 0]
    for reduction in ("sum", "none"):
        compare(mk.linear_cross_entropy, made, torch.float32, (), reduction=reduction, name=name)


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("known", [None, 14])
def test_compiles_as_one_graph(known, reduction, name):
    made = tensors((3, 7), 5, 11)
    options = {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5, "reduction": reduction, "memory_budget": 200}
    options |= {"num_targets": known}
    torch.compiler.reset()  # one graph for each case is more than the compiler keeps of one function
    found = []
    for op in (mk.linear_cross_entropy, torch.compile(mk.linear_cross_entropy, backend="aot_eager", fullgraph=True)):
        leaves = {key: made[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")}
        with mk.backend(name):
            loss = op(**leaves, targets=made["targets"], **options).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_as_one_graph_where_the_number_of_rows_depends_on_data(monkeypatch, reduction, name):
    """With a GPU's budget too, which branches on that number."""
    asked = []
    own = chunks.default_budget
    monkeypatch.setattr(chunks, "default_budget", lambda kind, *given: asked.append(given) or own("cuda", *given))
    torch.compiler.reset()
    made = tensors((21,), 5, 101)
    there = made["targets"] != -100

    def loss_of(hidden, targets, there, weight, bias):
        return mk.linear_cross_entropy(hidden[there], weight, targets[there], bias=bias, reduction=reduction).sum()

    found = []
    for function in (loss_of, torch.compile(loss_of, backend="aot_eager", fullgraph=True, dynamic=True)):
        leaves = {key: made[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")}
        with mk.backend(name):
            loss = function(targets=made["targets"], there=there, **leaves)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(found[1], found[0])
    classes = chunks.padded(101, name == "fused")
    assert set(asked) == {(int(there.sum()), classes, 5, made["hidden"].itemsize)}


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "change, text",
    [
        pytest.param({"targets": torch.tensor([0, 5, -100])}, r"in \[0, 5\) .*, got 5 at \[1\]", id="target"),
        pytest.param({"num_targets": 3}, "num_targets is 3, but 2 targets are not", id="num_targets"),
    ],
)
def test_compiled_code_looks_at_targets_too(monkeypatch, change, text, reduction, name):
    monkeypatch.setattr(target_checks, "CHECKED", True)  # on a GPU it is asked for
    given = tensors((3,), 2, 5) | {"targets": torch.tensor([0, 4, -100])} | change
    given["targets"] = given["targets"].to(DEVICE)
    torch.compiler.reset()
    compiled = torch.compile(mk.linear_cross_entropy, backend="aot_eager", fullgraph=True)
    with mk.backend(name), pytest.raises(ValueError, match=text):
        compiled(**given, reduction=reduction)


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("known", [None, 5])
def test_operators_keep_the_rules_of_torch_library(known, dtype, fused):
    """With master weights in float32."""
    if fused:
        pytest.importorskip("triton", reason="there is no Triton for this system")
    made = tensors((7,), 5, 11)
    made["hidden"] = made["hidden"].to(dtype)
    inputs = [
        made[key].requires_grad_(made[key].is_floating_point()) for key in ("hidden", "weight", "bias", "targets")
    ]
    options = (-100, 0.1, 0.01, 2.5, 200, known, fused)
    # The gradients that _total returns cannot be differentiated, as opcheck's test of tracing would do; instead of it
    # there is test_compiles_as_one_graph.
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(chunks._total, (*inputs, *options, [True, True, True]), test_utils=rules)
    torch.library.opcheck(chunks._losses, (*inputs, *options))


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_second_derivative_is_an_error(name):
    made = tensors((3, 7), 5, 11)
    hidden = made["hidden"].requires_grad_()
    with mk.backend(name):
        loss = mk.linear_cross_entropy(**made)
    (dhidden,) = torch.autograd.grad(loss, hidden, create_graph=True)
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
        pytest.param({"weight": W[:0]}, ValueError, "the number of classes, must be 1 or more, got 0", id="0-classes"),
        pytest.param({"hidden": H[:, :2]}, ValueError, r"hidden must be \(2, 3\), with .* got \(2, 2\)", id="hidden"),
        pytest.param({"bias": H[0]}, ValueError, r"bias must be \(5,\), one per row of weight, got \(3,\)", id="bias"),
        pytest.param({"bias": T}, TypeError, "bias must be .* got torch.int64", id="bias-dtype"),
        pytest.param({"targets": T[:1]}, ValueError, r"targets must be \(2,\), one .* got \(1,\)", id="targets"),
        pytest.param({"targets": T.int()}, TypeError, "targets must be int64", id="targets-dtype"),
        pytest.param({"targets": T + 1}, ValueError, r"\[0, 5\) or ignore_index \(-100\), got 5 at \[1\]", id="high"),
        pytest.param({"reduction": "max"}, ValueError, "'sum', 'mean' or 'none', got 'max'", id="reduction"),
        pytest.param({"num_targets": 3}, ValueError, "num_targets must be from 0 to 2, .* got 3", id="num_targets"),
        pytest.param({"num_targets": 1}, ValueError, "num_targets is 1, but 2 targets are not", id="other-num_targets"),
        pytest.param({"num_targets": 2.0}, TypeError, "num_targets must be an int, got 2.0", id="float-num_targets"),
        pytest.param({"memory_budget": 0}, ValueError, "memory_budget must be at least 1 byte, got 0", id="budget"),
        pytest.param(
            {"memory_budget": 1e6}, TypeError, "memory_budget must be an int, got 1000000.0", id="float-budget"
        ),
        pytest.param({"weight": W.to("meta")}, ValueError, "weight is on meta, hidden on cpu", id="device"),
    ],
)
def test_mistake_is_one_line(change, error, text):
    with pytest.raises(error, match=text) as raised:
        mk.linear_cross_entropy(**({"hidden": H, "weight": W, "targets": T} | change))
    assert "\n" not in str(raised.value)
