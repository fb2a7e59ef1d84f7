"""Queries, keys and values that are heads of one product: their gradients lie as they do, and join without a copy."""

import minillm_kernels as mk
import pytest
import torch
from attention_cases import DEVICE
from minillm_kernels import dispatch
from minillm_kernels.attention import fused

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def heads_of_one_product(T=5, H=4, Hkv=2, D=16):
    """Return a product (B, T, (H + 2 Hkv) D) on the device, and what takes q, k and v out of it."""
    x = torch.randn(2, T, (H + 2 * Hkv) * D, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return x, lambda x: x.unflatten(-1, (-1, D)).split([H, Hkv, Hkv], dim=2)


@pytest.mark.parametrize("fewest", ["B", "T", "H", "Hkv", "none"])
def test_gradients_of_neighbours_are_neighbours_and_have_the_same_bits(fewest):
    sizes = (
        {"T": 1} if fewest == "T" else {"H": 2, "Hkv": 2} if fewest == "Hkv" else {"Hkv": 1} if fewest == "H" else {}
    )
    x, split = heads_of_one_product(**sizes)
    x = x[:1] if fewest == "B" else x
    parts = [part.requires_grad_() for part in split(x)]
    apart = [part.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for part in parts]
    dy = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with mk.backend("fused"):
        found = torch.autograd.grad(mk.attention(*parts, causal=True), parts, dy)
        expected = torch.autograd.grad(mk.attention(*apart, causal=True), apart, dy)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 3
    assert fused.are_neighbours(*found) and not fused.are_neighbours(*expected)
    assert {part.untyped_storage().data_ptr() for part in found} == {found[0].untyped_storage().data_ptr()}


def test_without_triton_gradients_of_neighbours_are_those_of_each(monkeypatch):
    monkeypatch.setattr(dispatch, "launches", lambda tensor: False)
    x, split = heads_of_one_product()
    parts = [part.requires_grad_() for part in split(x)]
    apart = [part.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for part in parts]
    with mk.backend("fused"):
        found, expected = (torch.autograd.grad(mk.attention(*given).square().sum(), given) for given in (parts, apart))
    assert fused.are_neighbours(*found)
    torch.testing.assert_close(found, expected)


def test_one_gradient_alone_of_neighbours_is_no_part_of_a_larger_one():
    x, split = heads_of_one_product()
    q, k, v = (part.detach() for part in split(x))
    with mk.backend("fused"):
        (dk,) = torch.autograd.grad(mk.attention(q, k.requires_grad_(), v, causal=True).sum(), k)
    assert dk.untyped_storage().nbytes() == dk.nbytes


@pytest.mark.parametrize("triton", [True, False], ids=["kernels", "without-triton"])
def test_compiled_gradients_of_neighbours_are_joined_by_what_the_compiler_takes_away(triton, monkeypatch):
    """A cat of all parts of a split, in their order and along its dimension: inductor puts the whole in its place."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    monkeypatch.setattr(dispatch, "launches", lambda tensor: triton)
    torch.use_deterministic_algorithms(False)
    graphs = []
    keep = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=lambda graph, _: graphs.append(graph) or make_boxed_func(graph.forward),
    )
    x, split = heads_of_one_product()
    with mk.backend("fused"):
        loss = lambda x: mk.attention(*split(x), causal=True).square().sum()  # noqa: E731
        (found,) = torch.autograd.grad(torch.compile(loss, backend=keep, fullgraph=True)(x.requires_grad_()), x)
        (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(found, expected)
    (graph,) = graphs
    (cat,) = (node for node in graph.graph.nodes if node.target == torch.ops.aten.cat.default)
    parts, dim = cat.args
    (source,) = {part.args[0] for part in parts}
    assert [part.args[1] for part in parts] == [0, 1, 2]
    assert source.target == torch.ops.aten.split_with_sizes.default
    assert source.args[1:] == ([4, 2, 2], dim)


@pytest.mark.parametrize("are_heads_of_one", [True, False], ids=["one-product", "three"])
@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_compiles_where_the_number_of_tokens_depends_on_data(are_heads_of_one):
    """Whether they are neighbours is asked while the number is not known."""
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    x, split = heads_of_one_product()

    def loss_of(x, number):
        T = number.item()
        torch._check(T >= 0)
        torch._check(T <= x.shape[1])
        q, k, v = split(x[:, :T] * 2)
        if not are_heads_of_one:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return mk.attention(q, k, v, causal=True).square().sum()

    number = torch.tensor(3)
    found = []
    for function in (loss_of, torch.compile(loss_of, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        with mk.backend("fused"):
            found += torch.autograd.grad(function(leaf, number), leaf)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("lengths", [{}, {"B": 0}, {"T": 0}], ids=["overlapping", "no-row", "no-token"])
def test_gradients_of_what_only_lies_as_neighbours_do_are_the_same(lengths):
    """Keys that are the values too, in a longer product: three gradients of two tensors."""
    x, _ = heads_of_one_product(H=4, Hkv=2, D=16)
    x = x.unflatten(-1, (-1, 16))[: lengths.get("B", 2), : lengths.get("T", 3)].requires_grad_()
    apart = x.detach().clone().requires_grad_()
    with mk.backend("fused"):
        (q, k), (q2, k2) = ((x[:, :, 1:5], x[:, :, 2:4]) for x in (x, apart))
        (found,) = torch.autograd.grad(mk.attention(q, k, k, causal=True).square().sum(), x)
        q2, k2 = q2.contiguous(), k2.contiguous()
        (expected,) = torch.autograd.grad(mk.attention(q2, k2, k2.clone(), causal=True).square().sum(), apart)
    assert fused.are_neighbours(q, k, k)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow  # inductor asks for a C++ compiler
def test_inductor_takes_away_what_joins_them():
    from torch._inductor.utils import fresh_cache, run_and_get_code

    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    hidden, weight = torch.randn(2, 5, 32, device=DEVICE), torch.randn(32, 128, device=DEVICE).requires_grad_()
    _, split = heads_of_one_product()

    def loss_of(weight):
        return mk.attention(*split(hidden @ weight), causal=True).square().sum()

    # what is kept on disk goes by the graph, which does not hold the backward pass of an op
    with mk.backend("fused"), fresh_cache():
        compiled = torch.compile(loss_of, fullgraph=True)
        found, code = run_and_get_code(lambda: torch.autograd.grad(compiled(weight), weight)[0])
        (expected,) = torch.autograd.grad(loss_of(weight), weight)
    torch.testing.assert_close(found, expected)
    backward = next(text for text in code if "attention_backward" in text)
    after = backward.split("attention_backward.default(")[1].split("return (")[0]
    assert ".mm(" in after and "fused_" not in after  # no kernel of its own between the op and the product


def test_joined_op_passes_opcheck():
    torch.use_deterministic_algorithms(False)
    x, split = heads_of_one_product()
    arguments = (*split(x), *[None] * 9, None, 0, None, 0.0, 0.3)
    y, lse = fused.attention_forward(*arguments)
    wanted = [True, True, True, False]
    torch.library.opcheck(fused.attention_backward, (torch.ones_like(y), y, lse, *arguments, wanted, True))
