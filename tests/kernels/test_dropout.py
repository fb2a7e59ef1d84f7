"""dropout against its definition, and the same elements on every backend."""

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.dispatch import Backend
from minillm_kernels.philox import uniform

BACKENDS: tuple[Backend, ...] = ("reference", "torch", "fused")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    pytest.param((4, 8, 16), id="tile-aligned"),
    pytest.param((3, 7, 5), id="ragged"),
    pytest.param((2, 1100), id="past-one-tile"),
    pytest.param((1,), id="one"),
]


CASES = [(name, dtype) for name in ("reference", "torch") for dtype in (torch.float64, torch.float32, torch.bfloat16)]
CASES += [("fused", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("name, dtype", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poisoned")
def test_output_and_gradient_are_the_definition(shape, name, dtype):
    x = torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    dy = torch.randn(shape, dtype=dtype, device=DEVICE)
    with mk.backend(name):
        y = mk.dropout(x, 0.3, 11)
    (dx,) = torch.autograd.grad(y, x, dy)
    kept = uniform(11, shape, DEVICE) >= 0.3
    rounding = 2 * torch.finfo(dtype).eps  # one product, with the factor itself rounded
    torch.testing.assert_close(y.double(), x.detach().double() * kept / 0.7, rtol=rounding, atol=0)
    torch.testing.assert_close(dx.double(), dy.double() * kept / 0.7, rtol=rounding, atol=0)


def test_backends_drop_the_same_elements_of_a_strided_tensor():
    x = torch.randn(9, 5, 7, device=DEVICE).transpose(0, 2) + 10
    zeros = []
    for name in BACKENDS:
        with mk.backend(name):
            zeros.append(mk.dropout(x, 0.5, 3) == 0)
    assert all(torch.equal(zeros[0], other) for other in zeros[1:])


@pytest.mark.parametrize("name", BACKENDS)
def test_what_stays_is_scaled_by_p_itself(name):
    """1 - 0.999 in float32 is 1e-5 of itself off."""
    x = torch.ones(10_000, device=DEVICE)
    with mk.backend(name):
        y = mk.dropout(x, 0.999, 3)
    kept = y[y != 0].double()
    assert len(kept)
    torch.testing.assert_close(kept, torch.full_like(kept, 1000), rtol=2**-23, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_dropped_is_p(p):
    count = 50_000
    dropped = (mk.dropout(torch.ones(count), p, 21) == 0).sum().item()
    deviation = (count * p * (1 - p)) ** 0.5
    assert abs(dropped - count * p) < 4 * deviation


def test_another_seed_drops_other_elements():
    x = torch.ones(1000)
    assert not torch.equal(mk.dropout(x, 0.5, 1), mk.dropout(x, 0.5, 2))
    assert not torch.equal(mk.dropout(x, 0.5, 1), mk.dropout(x, 0.5, 1 + 2**32))  # the seed's upper half counts


@pytest.mark.slow  # on a CPU PyTorch's compiler takes a C++ compiler, which the other tests do without
@pytest.mark.parametrize("name", ["torch", "fused"])
def test_a_compiled_call_takes_one_integer_after_the_other(name):
    """From the second on the compiler holds a seed as a symbol; PyTorch's own compiler, as others take any program."""
    x = torch.ones(1000, device=DEVICE)
    compiled = torch.compile(lambda seed: mk.dropout(x, 0.5, seed), fullgraph=True)
    with mk.backend(name):
        for seed in (1, 2, 2**62, -5):
            assert torch.equal(compiled(seed), mk.dropout(x, 0.5, seed))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(5, id="small"),
        pytest.param(-3, id="negative"),
        pytest.param(2**63 + 9, id="unsigned"),
        pytest.param(torch.tensor(2**40 + 1), id="tensor"),
    ],
)
def test_every_backend_drops_the_same_elements(p, seed):
    """The probabilities are no float32 numbers: the comparison with a number drawn must round them alike."""
    x = torch.ones(4000, device=DEVICE)
    zeros = []
    for name in BACKENDS:
        with mk.backend(name):
            zeros.append(mk.dropout(x, p, seed.to(DEVICE) if isinstance(seed, torch.Tensor) else seed) == 0)
    assert all(torch.equal(zeros[0], other) for other in zeros[1:])


def test_without_dropout_nothing_changes():
    x = torch.randn(3)
    assert mk.dropout(x, 0.0, None) is x


def test_reference_backward_is_the_derivative():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with mk.backend("reference"):
        assert torch.autograd.gradcheck(lambda x: mk.dropout(x, 0.4, 5), (x,))


@pytest.mark.parametrize(
    "p, seed, error, text",
    [
        pytest.param(1.0, 1, ValueError, r"^p must be in \[0, 1\), got 1.0", id="all"),
        pytest.param(0.5, None, ValueError, "^p=0.5 needs a seed", id="no-seed"),
    ],
)
def test_wrong_arguments_are_told(p, seed, error, text):
    with pytest.raises(error, match=text):
        mk.dropout(torch.ones(2), p, seed)


def test_traces_whole():
    compiled = torch.compile(lambda x, seed: mk.dropout(x, 0.3, seed), backend="eager", fullgraph=True)
    x, seed = torch.randn(5, 3), torch.tensor(9)
    assert torch.equal(compiled(x, seed), mk.dropout(x, 0.3, seed))
