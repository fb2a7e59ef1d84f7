"""cross_entropy: the maths against torch in float64, the backward against finite differences, the backends compared."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from torch.nn import functional

SHAPES = [
    pytest.param((16, 64), id="aligned"),
    pytest.param((3, 7, 101), id="ragged"),
    pytest.param((1, 1), id="one"),
    pytest.param((5,), id="one-row"),
    pytest.param((0, 3), id="no-row"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["sum", "mean", "none"]
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"z_loss": 0.01}, id="z-loss"),
    pytest.param({"softcap": 2.5}, id="softcap"),
    pytest.param({"ignore_index": 2}, id="ignore-a-class"),
    pytest.param({"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5}, id="all"),
]


def tensors(shape) -> dict[str, Any]:
    """Return logits and targets of which every third is ignored (with one row alone: none)."""
    torch.manual_seed(0)
    targets = torch.randint(shape[-1], shape[:-1])
    targets.view(-1)[1::3] = -100
    return {"logits": 3 * torch.randn(shape), "targets": targets}


def truth(logits, targets, *, reduction, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None):
    """Return what torch's own cross_entropy makes of it."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    flat, rows = targets.reshape(-1), logits.reshape(-1, logits.shape[-1])
    losses = functional.cross_entropy(
        rows, flat, reduction="none", ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    losses = (losses + z_loss * rows.logsumexp(-1).square() * (flat != ignore_index)).view(targets.shape)
    match reduction:
        case "none":
            return losses
        case "sum":
            return losses.sum()
        case _:
            return losses.sum() / max(1, int((targets != ignore_index).sum()))


def without_marks(made, options) -> dict[str, Any]:
    """Return the tensors with -100 replaced where another number means ignored."""
    if "ignore_index" not in options:
        return made
    return made | {"targets": made["targets"].clamp(min=0)}


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_that_of_torch(shape, options, reduction, name):
    made = without_marks(tensors(shape), options)
    logits, targets = made["logits"].double(), made["targets"]
    with mk.backend(name):
        loss = mk.cross_entropy(logits, targets, reduction=reduction, **options)
    torch.testing.assert_close(loss, truth(logits, targets, reduction=reduction, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored_gives_zero_and_no_gradient(outputs_and_gradients, reduction):
    made = {"logits": torch.randn(3, 5), "targets": torch.full((3,), -100)}
    for name in ("torch", "reference"):
        with mk.backend(name):
            found = outputs_and_gradients(mk.cross_entropy, made, reduction=reduction, z_loss=0.1)
        assert all((t == 0).all() for t in found.values())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_backward_is_the_derivative(gradcheck, options, reduction):
    made = without_marks(tensors((2, 3, 5)), options)
    gradcheck(mk.cross_entropy, made, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, options, dtype):
    # terms: with one class the loss is the difference of two equal logits of size 3
    made = without_marks(tensors(shape), options)
    compare(mk.cross_entropy, made, dtype, ("logits",), reduction="none", terms=3.0, **options)


@pytest.mark.parametrize(
    "view", [pytest.param(lambda t: t.mT, id="transposed"), pytest.param(lambda t: t[::2, 1:8:3], id="sliced")]
)
def test_strided_input(compare, view):
    logits = view(torch.randn(9, 8, 10))
    targets = torch.randint(logits.shape[-1], (*logits.shape[:-1], 2))[..., 0]
    compare(mk.cross_entropy, {"logits": logits, "targets": targets}, torch.float32, ())


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_are_finite(outputs_and_gradients, name, dtype):
    """exp(6e4) overflows in every dtype; the loss is the distance to the largest logit."""
    logits = torch.tensor([[6e4, 0.0, -6e4], [0.0, 0.0, 6e4]], dtype=dtype)
    with mk.backend(name):
        found = outputs_and_gradients(
            mk.cross_entropy, {"logits": logits, "targets": torch.tensor([0, 0])}, reduction="none"
        )
    torch.testing.assert_close(found["output 0"], torch.stack((torch.zeros(()), logits[1, 2].float())))
    assert found["dlogits"].isfinite().all()


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_mean_is_over_the_targets_that_count(name):
    made = tensors((3, 7, 101))
    kept = made["targets"] != -100
    with mk.backend(name):
        whole = mk.cross_entropy(**made, reduction="mean")
        alone = mk.cross_entropy(made["logits"][kept], made["targets"][kept], reduction="mean")
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(name):
    made = tensors((2, 3, 5))
    options = {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5, "reduction": "mean"}
    compiled = torch.compile(mk.cross_entropy, backend="aot_eager", fullgraph=True)
    found = []
    with mk.backend(name):
        for op in (mk.cross_entropy, compiled):
            logits = made["logits"].clone().requires_grad_()
            loss = op(logits, made["targets"], **options)
            found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    torch.testing.assert_close(found[1], found[0])


X = torch.zeros(2, 3)
T = torch.tensor([0, 2])


@pytest.mark.parametrize(
    "change, error, text",
    [
        pytest.param({"logits": X.long()}, TypeError, "logits must be .* got torch.int64", id="logits-dtype"),
        pytest.param({"targets": T[:1]}, ValueError, r"targets must be \(2,\), one .* got \(1,\)", id="shape"),
        pytest.param({"targets": T.int()}, TypeError, "targets must be int64, got torch.int32", id="targets-dtype"),
        pytest.param(
            {"targets": T + 1}, ValueError, r"in \[0, 3\) or ignore_index \(-100\), got 3 at \[1\]", id="high"
        ),
        pytest.param({"targets": T - 1}, ValueError, r"got -1 at \[0\]", id="low"),
        pytest.param(
            {"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0", id="smooth"
        ),
        pytest.param({"z_loss": -0.1}, ValueError, "z_loss must be at least 0, got -0.1", id="z-loss"),
        pytest.param({"softcap": 0.0}, ValueError, "softcap must be above 0, got 0.0; None for no cap", id="softcap"),
        pytest.param({"reduction": "max"}, ValueError, "'sum', 'mean' or 'none', got 'max'", id="reduction"),
        pytest.param({"targets": T.to("meta")}, ValueError, "targets is on meta", id="device"),
    ],
)
def test_mistake_is_one_line(change, error, text):
    with pytest.raises(error, match=text) as raised:
        mk.cross_entropy(**({"logits": X, "targets": T} | change))
    assert "\n" not in str(raised.value)
