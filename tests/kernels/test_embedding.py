"""embedding against a product with one-hot rows in float64."""

import minillm_kernels as mk
import pytest
import torch
import torch.nn.functional as F
from minillm_kernels.dispatch import Backend

BACKENDS: tuple[Backend, ...] = ("reference", "torch", "fused")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    pytest.param((2, 5), 64, 32, id="tile-aligned"),
    pytest.param((3, 7), 11, 5, id="ragged"),
    pytest.param((1,), 1, 1, id="one"),
    pytest.param((0,), 4, 3, id="no-tokens"),
    pytest.param((2, 3), 4, 1030, id="wide"),
]


CASES = [(name, dtype) for name in ("reference", "torch") for dtype in (torch.float32, torch.bfloat16)]
CASES += [("fused", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("name, dtype", CASES, ids=str)
@pytest.mark.parametrize("shape, V, C", SHAPES)
@pytest.mark.usefixtures("poisoned")
def test_rows_and_gradient_are_those_of_the_one_hot_product(shape, V, C, name, dtype):
    tokens = torch.randint(V, shape, device=DEVICE)
    weight = torch.randn(V, C, dtype=dtype, device=DEVICE, requires_grad=True)
    dy = torch.randn(*shape, C, dtype=dtype, device=DEVICE)
    with mk.backend(name):
        y = mk.embedding(tokens, weight)
    (dweight,) = torch.autograd.grad(y, weight, dy)
    onehot = F.one_hot(tokens.reshape(-1), V).double()
    expected_y = (onehot @ weight.detach().double()).view(*shape, C)
    expected_dweight = onehot.mT @ dy.double().reshape(-1, C)
    assert torch.equal(y.double(), expected_y)  # a copy: nothing is rounded
    size = (onehot.mT @ dy.double().abs().reshape(-1, C)).amax() if tokens.numel() else 1.0
    # each of the few additions rounds once
    torch.testing.assert_close(
        dweight.double(), expected_dweight, rtol=0, atol=2 * torch.finfo(dtype).eps * float(size)
    )


@pytest.mark.parametrize("integer", [torch.int64, torch.int32], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernel_sums_tokens_that_are_common_in_pieces(integer):
    """Segments of 900, 257, 256 and fewer places: four pieces, two, none, and rows of no token at all."""
    tokens = torch.tensor([2] * 900 + [5] * 257 + [1] * 256 + [0, 7, 7], dtype=integer)
    tokens = tokens[torch.randperm(len(tokens))].to(DEVICE)
    weight = torch.randn(9, 70, device=DEVICE, requires_grad=True)
    dy = torch.randn(len(tokens), 70, device=DEVICE)
    found = []
    for _ in range(2):
        with mk.backend("fused"):
            found.append(torch.autograd.grad(mk.embedding(tokens, weight), weight, dy)[0])
    truth = torch.zeros(9, 70, dtype=torch.float64, device=DEVICE).index_add_(0, tokens, dy.double())
    torch.testing.assert_close(found[0].double(), truth, rtol=0, atol=1e-4)  # sums of 900 numbers of size 1
    assert torch.equal(*found)


def test_tokens_that_lie_apart_are_read_where_they_lie():
    """As the inputs of a batch whose every row holds one token more for the targets."""
    tokens, weight = torch.randint(11, (3, 8), device=DEVICE)[:, :-1], torch.randn(11, 5, device=DEVICE)
    weight.requires_grad_()
    for there in (tokens, tokens.T):
        dy = torch.randn(*there.shape, 5, device=DEVICE)
        with mk.backend("fused"):
            y = mk.embedding(there, weight)
        assert torch.equal(y, weight[there])
        torch.testing.assert_close(*(torch.autograd.grad(rows, weight, dy) for rows in (y, weight[there])))


def test_reference_backward_is_the_derivative():
    tokens = torch.tensor([[0, 2, 2], [1, 0, 2]])
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with mk.backend("reference"):
        assert torch.autograd.gradcheck(lambda weight: mk.embedding(tokens, weight), (weight,))


@pytest.mark.parametrize(
    "tokens, weight, error, text",
    [
        pytest.param(
            torch.zeros(2), torch.ones(3, 2), TypeError, "int64 or int32, got torch.float32", id="float-tokens"
        ),
        pytest.param(torch.tensor([0]), torch.ones(3), ValueError, r"\(V, C\), got \(3,\)", id="flat-table"),
        pytest.param(torch.tensor([0]), torch.ones(3, 2).int(), TypeError, "weight must be float", id="integer-table"),
    ],
)
def test_wrong_arguments_are_told(tokens, weight, error, text):
    with pytest.raises(error, match=text):
        mk.embedding(tokens, weight)


ON_A_CPU = pytest.mark.skipif(
    DEVICE == "cuda", reason="on a GPU it is a device-side assertion, after which nothing runs any more"
)


@ON_A_CPU
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("token", [3, -1])
def test_token_outside_the_table_is_an_error(name, token):
    told = rf"tokens must be in \[0, 3\), the rows of the table, got {token} to {token}"
    with mk.backend(name), pytest.raises(IndexError, match=told):
        mk.embedding(torch.tensor([token]), torch.ones(3, 2))


@ON_A_CPU
def test_compiled_kernel_looks_at_tokens_too():
    compiled = torch.compile(mk.embedding, backend="aot_eager", fullgraph=True)
    with mk.backend("fused"), pytest.raises(IndexError, match=r"tokens must be in \[0, 3\), .* got 0 to 3"):
        compiled(torch.tensor([0, 3]), torch.ones(3, 2))
