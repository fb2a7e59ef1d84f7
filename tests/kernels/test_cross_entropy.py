"""cross_entropy: the maths against torch in float64, the backward against finite differences, the backends compared."""

from itertools import product
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels import dispatch
from minillm_kernels.cross_entropy import targets
from torch.nn import functional

SHAPES = [
    pytest.param((16, 64), id="aligned"),
    pytest.param((3, 7, 101), id="ragged"),
    pytest.param((1, 1), id="one"),
    pytest.param((5,), id="one-row"),
    pytest.param((0, 3), id="no-row"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = ["torch", "reference", "fused"]
NAME_AND_DTYPE = [pytest.param(name, dtype, id=f"{name}-{dtype}") for name in ("torch", "fused") for dtype in DTYPES]
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
    """Return logits and targets on the device, of which every third is ignored (with one row alone: none)."""
    torch.manual_seed(0)
    marked = torch.randint(shape[-1], shape[:-1])
    marked.view(-1)[1::3] = -100
    return {"logits": 3 * torch.randn(shape).to(DEVICE), "targets": marked.to(DEVICE)}


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
    made = tensors((3, 5))
    made["targets"][:] = -100
    for name in BACKENDS:
        with mk.backend(name):
            found = outputs_and_gradients(mk.cross_entropy, made, reduction=reduction, z_loss=0.1)
        assert all((t == 0).all() for t in found.values())


@pytest.mark.parametrize("ignore_index", [-1, 5, 10**6, 2**40])
@pytest.mark.parametrize("name", BACKENDS)
def test_any_number_may_mean_ignored(outputs_and_gradients, name, ignore_index):
    """That of no class too, and one that 32 bits do not hold."""
    made, options = tensors((3, 5)), {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5, "reduction": "none"}
    marked = made["targets"].masked_fill(made["targets"] == -100, ignore_index)
    with mk.backend(name):
        expected = outputs_and_gradients(mk.cross_entropy, made, **options)
        found = outputs_and_gradients(
            mk.cross_entropy, made | {"targets": marked}, ignore_index=ignore_index, **options
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_backward_is_the_derivative(gradcheck, options, reduction):
    made = without_marks(tensors((2, 3, 5)), options)
    gradcheck(mk.cross_entropy, made, reduction=reduction, **options)


@pytest.mark.parametrize("name, dtype", NAME_AND_DTYPE)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_backend_is_as_close_to_truth_as_reference(compare, poisoned, shape, options, name, dtype):
    # terms: with one class the loss is the difference of two equal logits of size 3
    made = without_marks(tensors(shape), options)
    compare(mk.cross_entropy, made, dtype, ("logits",), reduction="none", terms=3.0, name=name, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 2, 17, 128, 129, 1000, 1024, 4096, 4097, 12_289])
def test_kernel_takes_any_number_of_classes(compare, poisoned, V, dtype):
    for options in ({}, {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5}):
        made = tensors((19, V) if V <= 128 else (3, V))
        compare(mk.cross_entropy, made, dtype, ("logits",), reduction="mean", terms=3.0, name="fused", **options)


@pytest.fixture
def tiles_of_32(monkeypatch) -> None:
    """Let kernels take every row for a long one, with so small a tile that small tensors have several."""
    from minillm_kernels.cross_entropy import fused

    monkeypatch.setattr(fused, "launch_for", lambda *_: (1, 32, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 39, 41, 63, 64, 65, 71, 73, 105])
def test_long_rows_may_start_anywhere(compare, poisoned, tiles_of_32, V, dtype):
    """Nine rows have all places between two boundaries of 16 bytes where V is odd; a target in each part of the row."""
    made = tensors((9, V))
    made["targets"][[0, 3, 6]] = torch.tensor([0, V // 2, V - 1], device=DEVICE)
    for options in ({}, {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.5}):
        compare(mk.cross_entropy, made, dtype, ("logits",), reduction="none", terms=3.0, name="fused", **options)


@pytest.mark.parametrize("apart", [0, 1, 5, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", range(1, 9))
def test_views_of_long_rows_are_read_where_they_lie(compare, poisoned, tiles_of_32, offset, dtype, apart):
    """Storage offsets and row strides of all kinds; what lies around the rows is NaN."""
    for V in (6, 40, 71):
        made = tensors((9, V))
        logits = torch.full((16 + 9 * (V + apart),), torch.nan, dtype=dtype, device=DEVICE)
        logits = logits[offset : offset + 9 * (V + apart)].view(9, V + apart)[:, :V]
        logits.copy_(made["logits"])
        compare(mk.cross_entropy, made | {"logits": logits}, dtype, (), reduction="none", terms=3.0, name="fused")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "view, expected",
    [
        pytest.param(lambda t: t, [True, True], id="contiguous"),
        pytest.param(lambda t: t[1:], [True, False], id="odd-offset"),
        pytest.param(lambda t: t[8:], [True, True], id="offset-of-16-bytes"),
        pytest.param(lambda t: t[:, :-8], [True, True], id="rows-apart-by-16-bytes"),
        pytest.param(lambda t: t[:, 1:], [True, False], id="rows-apart-by-one"),
        pytest.param(lambda t: t[:, ::2], [False, False], id="strided"),
    ],
)
def test_launches_are_wide_where_rows_of_logits_and_gradient_lie_alike(monkeypatch, view, expected, dtype):
    from minillm_kernels.cross_entropy import fused

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, WIDE, **rest: found.append(WIDE)

    found, logits = [], view(torch.empty(9, 5001, dtype=dtype))
    for name in ("_cross_entropy_forward_kernel", "_cross_entropy_backward_kernel"):
        monkeypatch.setattr(fused, name, Kernel())
    options = (-100, 0.0, 0.0, None)
    targets = torch.zeros(len(logits), dtype=torch.int64)
    losses, lse = fused.forward(logits, targets, options)
    fused.backward(losses, logits, targets, lse, options)
    assert found == expected


@pytest.mark.parametrize("V", [5, 37, 4099])
def test_ignored_rows_are_not_read(V):
    made = tensors((9, V))
    ignored = made["targets"] == -100
    made["logits"][ignored] = torch.nan
    logits = made["logits"].requires_grad_()
    with mk.backend("fused"):
        losses = mk.cross_entropy(logits, made["targets"], reduction="none", z_loss=0.1, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (losses[ignored] == 0).all() and (gradient[ignored] == 0).all()
    assert losses.isfinite().all() and gradient.isfinite().all()


def test_smoothing_of_nearly_nothing_is_plain(outputs_and_gradients):
    """Without smoothing the kernel leaves out the sum of the logits: both ways must meet."""
    made = tensors((3, 7, 101))
    with mk.backend("fused"):
        plain = outputs_and_gradients(mk.cross_entropy, made, label_smoothing=0.0)
        nearly = outputs_and_gradients(mk.cross_entropy, made, label_smoothing=1e-9)
    torch.testing.assert_close(nearly, plain)


def test_a_shift_of_all_logits_changes_nothing(outputs_and_gradients):
    made = tensors((5, 4099))
    with mk.backend("fused"):
        here = outputs_and_gradients(mk.cross_entropy, made, reduction="none", label_smoothing=0.1)
        there = outputs_and_gradients(
            mk.cross_entropy, made | {"logits": made["logits"] + 64}, reduction="none", label_smoothing=0.1
        )
    torch.testing.assert_close(there, here, atol=64 * 2**-22, rtol=0)  # 64 takes 6 of the logits' bits


def test_kernel_gives_the_same_bits_twice(outputs_and_gradients):
    made = tensors((5, 4099))
    with mk.backend("fused"):
        first, second = (outputs_and_gradients(mk.cross_entropy, made, z_loss=0.1) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", BACKENDS)
def test_backward_may_be_called_twice_and_leaves_the_logits_alone(name):
    made = tensors((5, 101))
    before = made["logits"].clone()
    logits = made["logits"].requires_grad_()
    with mk.backend(name):
        loss = 3 * mk.cross_entropy(logits, made["targets"])
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_masked_classes_have_probability_zero(outputs_and_gradients, z_loss):
    """Logits of -inf, also a whole tile of them at the start."""
    made = tensors((3, 9000))
    made["logits"][:, :5000] = -torch.inf
    made["targets"][:] = 8000
    expected = outputs_and_gradients(truth, made, reduction="none", z_loss=z_loss)
    for name in BACKENDS:
        with mk.backend(name):
            found = outputs_and_gradients(mk.cross_entropy, made, reduction="none", z_loss=z_loss)
        torch.testing.assert_close(found, expected)


def test_target_that_nobody_looked_for_gives_nan():
    """On a GPU a wrong target is not looked for: no address outside of its row is read, and the loss shows it."""
    from minillm_kernels.cross_entropy import fused

    for V, wrong in product((5, 4099), (-1, 4099, 2**32, 2**40)):
        logits = torch.zeros(2, V, device=DEVICE, requires_grad=True)
        losses = fused.cross_entropy(logits, torch.tensor([wrong, 1], device=DEVICE), -100, 0.0, 0.0, None)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert losses.isnan().tolist() == [True, False]
        assert gradient.isnan().all(1).tolist() == [True, False]


def test_targets_are_looked_at_where_that_waits_for_nothing_and_in_checked_mode(monkeypatch):
    assert [targets.looks_at(kind) for kind in ("cpu", "cuda", "meta")] == [True, False, False]
    monkeypatch.setattr(targets, "CHECKED", True)
    assert [targets.looks_at(kind) for kind in ("cpu", "cuda", "meta")] == [True, True, False]


@pytest.mark.parametrize("interpreted", [True, False], ids=["kernel", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 11), (4, 0, 3), (5,)], ids=str)
def test_operators_keep_the_rules_of_torch_library(shape, dtype, interpreted, monkeypatch):
    """With the kernel, and with what stands in for it where Triton cannot run."""
    from minillm_kernels.cross_entropy import fused

    if not interpreted:
        monkeypatch.setattr(dispatch, "launches", lambda tensor: False)
    made = tensors(shape)
    logits = made["logits"].to(dtype).movedim(-1, 0).contiguous().movedim(0, -1)  # results have other strides
    options = (-100, 0.1, 0.01, 2.5)
    torch.library.opcheck(fused._forward, (logits.requires_grad_(), made["targets"], *options))
    losses = torch.randn(shape[:-1], device=DEVICE)
    inputs = (losses, logits.detach(), made["targets"], losses)
    torch.library.opcheck(fused._backward, (*inputs, *options))


def test_operators_work_where_no_kernel_can_run(outputs_and_gradients, monkeypatch):
    """On a CPU without the interpreter they compute by the reference."""
    from minillm_kernels.cross_entropy import fused

    made = {key: tensor.cpu() for key, tensor in tensors((3, 7, 11)).items()}
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 2.5}
    with mk.backend("reference"):
        expected = outputs_and_gradients(mk.cross_entropy, made, reduction="none", **options)
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    found = outputs_and_gradients(fused.cross_entropy, made, ignore_index=-100, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "view", [pytest.param(lambda t: t.mT, id="transposed"), pytest.param(lambda t: t[::2, 1:8:3], id="sliced")]
)
@pytest.mark.parametrize("name", ["torch", "fused"])
def test_strided_input(compare, view, name):
    logits = view(torch.randn(9, 8, 10))
    strided = torch.randint(logits.shape[-1], (*logits.shape[:-1], 2))[..., 0]
    compare(mk.cross_entropy, {"logits": logits, "targets": strided}, torch.float32, (), name=name)


@pytest.mark.parametrize("view", [lambda t: t.T, lambda t: t[::2, ::3]], ids=["transposed", "sliced"])
def test_kernel_reads_strided_rows_where_they_lie(compare, view):
    logits = view(torch.randn(300, 330))
    compare(
        mk.cross_entropy, {"logits": logits, "targets": torch.arange(len(logits)) % 30}, torch.float32, (), name="fused"
    )


@pytest.mark.parametrize(
    "name, dtype", [*NAME_AND_DTYPE, *(pytest.param("reference", dtype, id=f"reference-{dtype}") for dtype in DTYPES)]
)
def test_large_logits_are_finite(outputs_and_gradients, name, dtype):
    """exp(6e4) overflows in every dtype; the loss is the distance to the largest logit."""
    logits = torch.tensor([[6e4, 0.0, -6e4], [0.0, 0.0, 6e4]], dtype=dtype, device=DEVICE)
    with mk.backend(name):
        found = outputs_and_gradients(
            mk.cross_entropy, {"logits": logits, "targets": torch.zeros_like(logits[:, 0]).long()}, reduction="none"
        )
    torch.testing.assert_close(found["output 0"], torch.stack((torch.zeros_like(logits[1, 2]), logits[1, 2])).float())
    assert found["dlogits"].isfinite().all()


@pytest.mark.parametrize("name", BACKENDS)
def test_mean_is_over_the_targets_that_count(name):
    made = tensors((3, 7, 101))
    kept = made["targets"] != -100
    with mk.backend(name):
        whole = mk.cross_entropy(**made, reduction="mean")
        alone = mk.cross_entropy(made["logits"][kept], made["targets"][kept], reduction="mean")
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", BACKENDS)
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
        pytest.param({"logits": X[0, 0]}, ValueError, "logits must be .* got a number", id="no-class"),
        pytest.param(
            {"logits": X[:, :0]}, ValueError, "the number of classes, must be 1 or more, got 0", id="0-classes"
        ),
        pytest.param({"targets": T[:1]}, ValueError, r"targets must be \(2,\), one .* got \(1,\)", id="shape"),
        pytest.param({"targets": T.int()}, TypeError, "targets must be int64, got torch.int32", id="targets-dtype"),
        pytest.param(
            {"targets": T + 1}, ValueError, r"in \[0, 3\) or ignore_index \(-100\), got 3 at \[1\]", id="high"
        ),
        pytest.param({"targets": T - 1}, ValueError, r"got -1 at \[0\]", id="low"),
        pytest.param(
            {"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0", id="smooth"
        ),
        pytest.param({"z_loss": -0.1}, ValueError, "z_loss must be at least 0 and finite, got -0.1", id="z-loss"),
        pytest.param(
            {"softcap": 0.0}, ValueError, "softcap must be above 0 .*, got 0.0; None for no cap", id="softcap"
        ),
        pytest.param({"softcap": float("inf")}, ValueError, "softcap must be .* finite, got inf", id="no-cap"),
        pytest.param({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got 1.5", id="ignore-index"),
        pytest.param({"reduction": "max"}, ValueError, "'sum', 'mean' or 'none', got 'max'", id="reduction"),
        pytest.param({"targets": T.to("meta")}, ValueError, "targets is on meta", id="device"),
    ],
)
def test_mistake_is_one_line(change, error, text):
    with pytest.raises(error, match=text) as raised:
        mk.cross_entropy(**({"logits": X, "targets": T} | change))
    assert "\n" not in str(raised.value)
