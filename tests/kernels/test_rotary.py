"""rotary: the maths against complex numbers, its invariance, finite differences, one backend against another."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend

SHAPES = [
    pytest.param((2, 8, 4, 2, 16), id="aligned"),
    pytest.param((3, 7, 5, 1, 6), id="ragged"),
    pytest.param((1, 1, 1, 1, 2), id="one"),
    pytest.param((0, 3, 1, 1, 2), id="no-row"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: list[Backend] = ["torch", "reference", "fused"]
PAIRS = [pytest.param(False, id="half-split"), pytest.param(True, id="interleaved")]
LENGTH = 20  # rows of the tables


def tables(width, length=LENGTH) -> dict[str, Any]:
    angle = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, width, 2) / width))
    return {"cos": angle.cos(), "sin": angle.sin()}  # each (P, D/2)


def tensors(shape) -> dict[str, Any]:
    torch.manual_seed(0)
    B, T, H, Hkv, D = shape
    return {"q": torch.randn(B, T, H, D), "k": torch.randn(B, T, Hkv, D)} | tables(D)


def positions_of(shape):
    return torch.randint(LENGTH, shape[:2], generator=torch.Generator().manual_seed(2))


def turned(x, cos, sin, positions, interleaved):
    """Multiply each pair, as a complex number, by that of its angle."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT  # (B, T, H, D/2, 2)
    turn = torch.complex(cos, sin)[positions][:, :, None]  # (B, T, 1, D/2)
    result = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return (result if interleaved else result.mT).flatten(-2)


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("given", [False, True], ids=["in-order", "positions"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_a_complex_product(shape, given, interleaved, name):
    q, k, cos, sin = (t.double() for t in tensors(shape).values())
    positions = positions_of(shape) if given else None
    with mk.backend(name):
        found = mk.rotary(q, k, cos, sin, positions=positions, interleaved=interleaved)
    at = torch.arange(shape[1]).expand(shape[:2]) if positions is None else positions
    torch.testing.assert_close(found, tuple(turned(x, cos, sin, at, interleaved) for x in (q, k)))


@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("name", BACKENDS)
def test_length_of_a_head_stays(name, interleaved):
    made = {key: t.to(DEVICE) for key, t in tensors((2, 7, 3, 1, 8)).items()}
    with mk.backend(name):
        turned = mk.rotary(**made, interleaved=interleaved)
    for before, after in zip((made["q"], made["k"]), turned, strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))


@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("name", BACKENDS)
def test_only_the_distance_matters(name, interleaved):
    """The point of rotary: the product of a query and a key depends on the difference of their positions alone."""
    made = {key: t.to(DEVICE) for key, t in tensors((2, 7, 3, 3, 8)).items()}
    products = []
    for shift in (0, 11):
        positions = torch.arange(7, device=DEVICE).expand(2, 7) + shift
        with mk.backend(name):
            q, k = mk.rotary(**made, positions=positions, interleaved=interleaved)
        products.append(torch.einsum("bthd,bshd->bhts", q, k))
    torch.testing.assert_close(products[1], products[0], atol=1e-5, rtol=1e-5)  # sums of 8 products of size 1


@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("given", [False, True], ids=["in-order", "positions"])
def test_backward_is_the_derivative(gradcheck, given, interleaved):
    shape = (2, 3, 2, 1, 4)
    made = tensors(shape)
    cos, sin = made.pop("cos").double(), made.pop("sin").double()
    positions = positions_of(shape) if given else None
    gradcheck(mk.rotary, made, cos=cos, sin=sin, positions=positions, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("given", [False, True], ids=["in-order", "positions"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_as_close_to_truth_as_reference(compare, shape, given, interleaved, dtype):
    positions = positions_of(shape).to(DEVICE) if given else None
    compare(mk.rotary, tensors(shape), dtype, ("q", "k"), positions=positions, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("given", [False, True], ids=["in-order", "positions"])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((2, 19, 12, 4, 96), id="many-tiles")])
@pytest.mark.usefixtures("poisoned")
def test_kernel_is_as_close_to_truth_as_reference(compare, shape, given, interleaved, dtype):
    positions = positions_of(shape).to(DEVICE) if given else None
    made = tensors(shape)
    compare(mk.rotary, made, dtype, ("q", "k"), name="fused", positions=positions, interleaved=interleaved)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_views_of_one_projection(compare, name):
    """What a fused projection to q, k and v gives: heads side by side in rows of all three."""
    q, k, _ = torch.randn(2, 5, 8, 6).split((4, 2, 2), dim=2)
    compare(mk.rotary, {"q": q, "k": k} | tables(6), torch.float32, (), name=name)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_one_row_of_positions_for_all_and_tables_side_by_side(compare, name):
    """Views, as models make them: positions that are expanded, cos and sin as halves of one table."""
    made = tensors((3, 7, 2, 1, 6))
    cos, sin = torch.cat((made.pop("cos"), made.pop("sin")), dim=1).to(DEVICE).chunk(2, dim=1)
    positions = torch.randperm(LENGTH, device=DEVICE)[:7].expand(3, 7)
    compare(mk.rotary, made | {"cos": cos, "sin": sin}, torch.float32, (), name=name, positions=positions)


def test_kernel_makes_a_position_outside_of_the_tables_nan():
    """On a GPU nobody looks at positions beforehand; what must not happen is a read past the tables."""
    from minillm_kernels.rotary import fused

    made = {name: t.to(DEVICE) for name, t in tensors((1, 3, 1, 1, 4)).items()}
    positions = torch.tensor([[0, LENGTH, -1]], device=DEVICE)
    q, _ = fused.rotary(**made, positions=positions, interleaved=False)
    assert q[0, 0].isfinite().all() and q[0, 1:].isnan().all()


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda t: t.transpose(1, 2), id="transposed"),
        pytest.param(lambda t: t[:, ::2, :, 2:8], id="sliced"),
        pytest.param(lambda t: t.flip(3)[..., :4], id="part-of-a-head"),
        pytest.param(lambda t: t[..., 1::3][..., :2], id="every-third-column"),
    ],
)
def test_strided_input(compare, view, interleaved, name):
    made = {key: view(torch.randn(2, 5, 3, 10)) for key in ("q", "k")}
    compare(mk.rotary, made | tables(made["q"].shape[-1]), torch.float32, (), name=name, interleaved=interleaved)


@pytest.mark.parametrize("name", BACKENDS)
def test_tables_get_no_gradient(outputs_and_gradients, name):
    made = {key: t.to(DEVICE) for key, t in tensors((2, 3, 2, 1, 4)).items()}
    with mk.backend(name):
        found = outputs_and_gradients(mk.rotary, made)
    assert found.keys() == {"output 0", "output 1", "dq", "dk"}


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_compiles_as_one_graph(name):
    made = tensors((2, 3, 2, 1, 4))
    compiled = torch.compile(mk.rotary, backend="aot_eager", fullgraph=True)
    with mk.backend(name):
        for positions in (None, torch.tensor([[0, 1, 2], [5, 6, 7]])):
            torch.testing.assert_close(compiled(**made, positions=positions), mk.rotary(**made, positions=positions))


@pytest.mark.parametrize("table", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", PAIRS)
@pytest.mark.parametrize("name", BACKENDS)
def test_tables_of_another_dtype_are_float32_inside(name, interleaved, table):
    """Their own digits are what they are; no product is rounded to them."""
    made = {key: t.to(DEVICE, torch.bfloat16) for key, t in tensors((2, 7, 3, 1, 8)).items()}
    given = {key: made[key].to(table) for key in ("cos", "sin")}
    with mk.backend(name):
        found = mk.rotary(**made | given, interleaved=interleaved)
        expected = mk.rotary(**made | {key: t.float() for key, t in given.items()}, interleaved=interleaved)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


Q = torch.zeros(2, 3, 4, 6)
COS = torch.zeros(5, 3)


@pytest.mark.parametrize(
    "change, error, text",
    [
        pytest.param({"q": Q.long()}, TypeError, "q must be .* got torch.int64", id="q-dtype"),
        pytest.param({"q": Q[0]}, ValueError, r"q must be \(B, T, H, D\), got \(3, 4, 6\)", id="q-rank"),
        pytest.param({"k": Q[0]}, ValueError, r"k must be \(B, T, Hkv, D\)", id="k-rank"),
        pytest.param({"k": Q[:, :2]}, ValueError, r"k must be \(2, 3, 4, 6\).* got \(2, 2, 4, 6\)", id="k-length"),
        pytest.param({"k": Q.half()}, TypeError, "k is torch.float16, q torch.float32", id="k-dtype"),
        pytest.param({"q": Q[..., :5], "k": Q[..., :5]}, ValueError, "must be even, got 5", id="odd"),
        pytest.param({"cos": COS[0]}, ValueError, r"cos must be \(P, D/2\)", id="cos-rank"),
        pytest.param({"cos": COS[:, :2]}, ValueError, r"cos must be \(5, 3\).* got \(5, 2\)", id="cos-width"),
        pytest.param({"sin": COS[:4]}, ValueError, r"sin must be \(5, 3\).* got \(4, 3\)", id="sin"),
        pytest.param({"sin": COS.double()}, TypeError, "sin is torch.float64, cos torch.float32", id="sin-dtype"),
        pytest.param({"cos": COS[:2], "sin": COS[:2]}, ValueError, "q has 3 positions, the tables only 2", id="short"),
        pytest.param({"positions": torch.zeros(3).long()}, ValueError, r"positions must be \(2, 3\)", id="positions"),
        pytest.param({"positions": torch.zeros(2, 3)}, TypeError, "positions must be int64", id="positions-dtype"),
        pytest.param({"positions": torch.full((2, 3), 5)}, ValueError, r"in \[0, 5\).* got 5 to 5", id="beyond"),
        pytest.param({"positions": torch.full((2, 3), -1)}, ValueError, "got -1 to -1", id="negative"),
        pytest.param({"cos": COS.to("meta")}, ValueError, "cos is on meta", id="device"),
    ],
)
def test_mistake_is_one_line(change, error, text):
    with pytest.raises(error, match=text) as raised:
        mk.rotary(**({"q": Q, "k": Q, "cos": COS, "sin": COS} | change))
    assert "\n" not in str(raised.value)
