"""The attention kernels: every option by itself and all together against the definition, and what must hold for any.

Interpreted without a GPU, compiled with one. All memory that is not initialised holds NaN, so that a part of an output
that is not written is seen.
"""

import minillm_kernels as mk
import pytest
import torch
from attention_cases import (
    DEVICE,
    OPTIONS,
    SMALL,
    assert_close,
    assert_close_to_truth,
    cancelling,
    inputs,
    moved,
    numbers,
    prepared,
    run,
    run_fused,
    truth,
)
from attention_sampler import COUNT, PAIRS, sample
from minillm_kernels import dispatch
from minillm_kernels.attention import configs, fused
from minillm_kernels.attention.masks import Masks
from minillm_kernels.attention.spans import key_spans, query_spans
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[None, (16, 32), (32, 16)], ids=["table", "16x32", "32x16"])
def tile(request, monkeypatch):
    """Tiles of other shapes: every bound of a loop is rounded to one side's or the other's."""
    if request.param is not None:
        with_tile(monkeypatch, *request.param)


def with_tile(monkeypatch, block_m, block_n):
    config = configs.Launch(block_m, block_n, 4, 1)
    monkeypatch.setattr(configs, "launch", lambda *_: config)


@each_dtype
@pytest.mark.parametrize("option", OPTIONS)
def test_fused_is_as_close_to_truth_as_reference(option, dtype):
    tensors, dy, o = prepared(option, dtype)
    assert_close_to_truth("fused", tensors, dy, o, terms=cancelling(option))


LONGER = {
    "causal": {"causal": True},
    "window": {"window": (5, 9)},
    "left": {"causal": True, "window": (20, None)},
    "padded": {"causal": True, "key_start": numbers(18), "key_stop": numbers(37)},
    "prefix": {"causal": True, "window": (3, None), "prefix": numbers(20)},
}
SHAPES = {
    "ragged": (1, 39, 39, 1, 1, 17),
    "few-queries": (1, 7, 50, 2, 1, 33),
    "few-keys": (1, 50, 23, 1, 1, 24),
    "aligned": (1, 32, 64, 1, 1, 64),
    "wide": (1, 20, 36, 1, 1, 80),
}


@pytest.mark.parametrize("o", LONGER.values(), ids=LONGER)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_several_tiles_of_each_kind(shape, o):
    tensors, dy = inputs(shape, torch.float32)
    assert_close_to_truth("fused", tensors, dy, o)


@pytest.mark.parametrize("o", [{"causal": True}, {"window": (17, 2)}], ids=["causal", "window"])
def test_tiles_of_any_shape(o, tile):
    tensors, dy = inputs((1, 37, 50, 1, 1, 16), torch.float32)
    assert_close_to_truth("fused", tensors, dy, o)


@each_dtype
@pytest.mark.parametrize("D", [129, 192, 256])
def test_wide_heads(D, dtype):
    tensors, dy = inputs((1, 17, 17, 1, 1, D), dtype)
    assert_close_to_truth("fused", tensors, dy, {"causal": True})


@pytest.mark.parametrize("number", range(COUNT))
def test_sampled_options(number, monkeypatch):
    call = sample(number)
    print(call.describe())
    with_tile(monkeypatch, *call.tile)
    wide = [x.double() for x in call.tensors]
    with mk.backend("reference"):
        expected = run(mk.attention, wide, call.dy.double(), call.options)
    ours = run_fused(call.tensors, call.dy, call.options)
    # a row that sees one key has da = 0, as the difference of two sums over D numbers; in low precision y is rounded
    terms = 4 * call.dy.shape[-1] ** 0.5 if call.dtype == torch.float32 else 3.0
    assert_close(ours, expected, call.tensors, call.dy, call.options, terms)


def test_each_pair_of_options_is_sampled():
    on = [sample(number).on for number in range(COUNT)]
    assert COUNT >= 200
    assert all(any(set(pair) <= options for options in on) for pair in PAIRS)


# --- what must hold for any input ---


def test_window_without_bounds_is_none():
    tensors, dy = inputs((1, 7, 20, 1, 1, 16), torch.float32)
    plain = run_fused(tensors, dy, {})
    for window in ((None, None), (27, 27), (2**40, None)):
        for x, y in zip(plain, run_fused(tensors, dy, {"window": window}), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-6)


def test_permuting_the_batch_permutes_the_result():
    o = {"causal": True, "key_start": numbers(0, 3)}
    turned = {**o, "key_start": numbers(3, 0)}
    tensors, dy = inputs((2, 19, 19, 2, 2, 16), torch.float32)
    there = run_fused([x.flip(0) for x in tensors], dy.flip(0), turned)
    for x, y in zip(run_fused(tensors, dy, o), there, strict=True):
        assert torch.equal(x.flip(0), y)


def test_grouped_heads_are_repeated_heads():
    tensors, dy = inputs((1, 19, 19, 4, 2, 16), torch.float32)
    q, k, v = (x.detach() for x in tensors)
    y, dq, dk, dv = run_fused(tensors, dy, {"causal": True})
    repeated = [q, *(x.repeat_interleave(2, 2) for x in (k, v))]
    y2, dq2, dk2, dv2 = run_fused(repeated, dy, {"causal": True})
    assert torch.equal(y, y2) and torch.equal(dq, dq2)
    for x, x2 in ((dk, dk2), (dv, dv2)):
        torch.testing.assert_close(x, x2.unflatten(2, (2, 2)).sum(3), rtol=0, atol=1e-5)


def test_shifting_the_scores_of_a_row_changes_nothing():
    tensors, dy = inputs(SMALL, torch.float32)
    bias = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    shift = torch.randn(1, 1, 5, 1, generator=torch.Generator().manual_seed(3)) * 30
    plain, shifted = (run_fused([*tensors, b], dy, {"causal": True}) for b in (bias, bias + shift))
    for x, y in zip(plain, shifted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=3e-5)  # scores of size 60 have steps of 4e-6


def test_packed_is_padded_is_one_by_one():
    lengths = [3, 9, 6]
    (q, k, v), dy = inputs((1, 18, 18, 2, 1, 16), torch.float32)
    q, k, v = (x.detach() for x in (q, k, v))
    packed = run_fused([q, k, v], dy, {"causal": True, "cu_seqlens_q": numbers(0, 3, 12, 18)})
    parts = zip(*(x.split(lengths, 1) for x in (q, k, v, dy)), strict=True)
    alone = [run_fused([a, b, c], d, {"causal": True}) for a, b, c, d in parts]

    def padded(x):
        return torch.cat([torch.nn.functional.pad(s, (0, 0, 0, 0, 0, 9 - s.shape[1])) for s in x.split(lengths, 1)])

    together = run_fused([padded(x) for x in (q, k, v)], padded(dy), {"causal": True, "key_stop": numbers(*lengths)})
    for which, x in enumerate(packed):
        torch.testing.assert_close(x, torch.cat([one[which] for one in alone], 1), rtol=0, atol=1e-6)
        unpadded = torch.cat([together[which][b : b + 1, :n] for b, n in enumerate(lengths)], 1)
        torch.testing.assert_close(x, unpadded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", ["packed-cross", "dropout", "bias-shared-by-all"])
def test_bits_are_equal_on_repeat(option):
    tensors, dy, o = prepared(option, torch.float16)
    for x, y in zip(run_fused(tensors, dy, o), run_fused(tensors, dy, o), strict=True):
        assert torch.equal(x, y)


def test_the_same_elements_are_dropped():
    """One-hot values make the output the weights themselves."""
    (q, k, _), _ = inputs((2, 20, 20, 2, 2, 20), torch.float32, requires_grad=False)
    v = torch.eye(20)[None, :, None].expand(2, 20, 2, 20).contiguous()
    with mk.backend("reference"):
        expected = mk.attention(q, k, v, dropout_p=0.25, seed=2**50 + 8)
    with mk.backend("fused"):
        ours = mk.attention(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), dropout_p=0.25, seed=2**50 + 8).cpu()
        seed = torch.tensor(2**50 + 8, device=DEVICE)
        tensor_seed = mk.attention(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), dropout_p=0.25, seed=seed).cpu()
    assert torch.equal(ours == 0, expected == 0)
    assert torch.equal(ours, tensor_seed)


@each_dtype
def test_query_that_sees_nothing_gets_zeros_and_gives_no_gradient(dtype):
    tensors, dy = inputs(SMALL, dtype)
    for x in run_fused(tensors, dy, {"key_stop": numbers(5, 0), "softcap": 2.0, "dropout_p": 0.2, "seed": 1}):
        assert x.isfinite().all()
        assert (x[1] == 0).all()
        assert (x[0] != 0).any()


def test_scores_far_apart_do_not_overflow():
    """Scores of size 2000 in float16, whose exponentials have no number; masked ones are no smaller."""
    (q, k, v), dy = inputs((1, 19, 19, 1, 1, 16), torch.float16)
    assert_close_to_truth("fused", [q * 100, k * 5, v], dy, {"causal": True}, terms=3.0 * 100)


@pytest.mark.parametrize("scale", [0.0, 1e-50, -1.0])
def test_scale_may_be_as_small_as_0_in_float32_and_below(scale):
    tensors, dy = inputs((1, 19, 35, 1, 1, 16), torch.float32)
    assert_close_to_truth("fused", tensors, dy, {"causal": True, "scale": scale})


def test_strides_past_two_to_the_31():
    """Rows 2**31 elements apart, in memory that is mapped and never touched but for them."""
    torch.use_deterministic_algorithms(False)  # nothing is to be filled
    rows, width = 2, 16
    step = 2**31 + 8
    storage = torch.empty(step + 64 * width, dtype=torch.float16, device=DEVICE)
    tensors, dy = inputs((1, rows, rows, 1, 1, width), torch.float16)
    far = []
    for place, x in enumerate((*tensors, dy)):
        view = storage.as_strided((1, rows, 1, width), (step, step, width, 1), place * width)
        far.append(view.copy_(x.detach()))
    near = run_fused(tensors, dy, {"causal": True})
    with mk.backend("fused"):
        q, k, v = (x.detach().requires_grad_() for x in far[:3])
        y = mk.attention(q, k, v, causal=True)
        found = [y.detach(), *torch.autograd.grad(y, (q, k, v), far[3])]
    for x, expected in zip(found, near, strict=True):
        assert torch.equal(x.cpu(), expected)


@pytest.mark.parametrize("shape", [(0, 3, 3, 2, 2, 8), (2, 0, 3, 2, 1, 8), (2, 3, 0, 2, 2, 8)], ids=["B", "T", "S"])
def test_empty(shape):
    tensors, dy = inputs(shape, torch.float32)
    y, dq, dk, dv = run_fused(tensors, dy, {"causal": True})
    assert (y.shape, dq.shape, dk.shape, dv.shape) == (dy.shape, *(x.shape for x in tensors))
    assert all((x == 0).all() for x in (y, dq, dk, dv))


# --- decoding ---

DECODED = {
    "causal": {"causal": True},
    "window": {"causal": True, "window": (21, None)},
    "window-both": {"window": (30, 2)},
    "padded": {"causal": True, "key_start": numbers(20, 0), "key_stop": numbers(70, 35)},
    "nothing-seen": {"key_stop": numbers(0, 70)},
    "prefix": {"causal": True, "window": (3, None), "prefix": numbers(9, 40)},
    "alibi": {"causal": True, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    "softcap": {"softcap": 0.7, "scale": -0.3},
    "dropout": {"dropout_p": 0.3, "seed": 7},
    "bias": {"causal": True, "bias": torch.randn(1, 4, 3, 70, generator=torch.Generator().manual_seed(1))},
}


@each_dtype
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("option", DECODED)
def test_decoding_is_as_close_to_truth_as_reference(option, T, dtype, monkeypatch):
    o = dict(DECODED[option])
    if "bias" in o:
        o["bias"] = o["bias"][:, :, :T]
    (q, k, v), dy = inputs((2, T, 70, 4, 2, 24), dtype, requires_grad=False)
    called = []
    decode = fused.decode
    monkeypatch.setattr(fused, "decode", lambda *a: called.append(1) or decode(*a))
    with torch.no_grad(), mk.backend("fused"):
        there = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in o.items()}
        y = mk.attention(moved(q), moved(k), moved(v), **there).cpu()
    assert called
    expected, _ = truth(q.double(), k.double(), v.double(), **o)
    with mk.backend("reference"):
        plain = mk.attention(q, k, v, **o)
    allowed = 2 * (plain - expected).abs().max() + 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert (y - expected).abs().max() <= allowed


def test_decoding_is_split():
    from minillm_kernels.attention.decode import split_size

    assert split_size(4096, 8, 64) == 128  # 32 programs a key head: 256 in all
    assert split_size(4096, 1000, 64) == 4096  # heads enough
    assert split_size(40, 1, 64) == 64


# --- part of PyTorch ---


def op_arguments(option):
    tensors, dy, o = prepared(option, torch.float32)
    q, k, v, *bias = (moved(x).requires_grad_() for x in tensors)
    left, right = o.get("window", (None, None))
    right = 0 if o.get("causal") else right
    masks = [o.get(name) for name in ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")]
    seed = torch.tensor(o["seed"]) if "seed" in o else None
    found = [x if x is None else x.to(DEVICE) for x in (o.get("alibi_slopes"), *masks, seed)]
    rest = (left, right, o.get("softcap"), o.get("dropout_p", 0.0), 0.3)
    return (q, k, v, bias[0] if bias else None, *found, *rest), moved(dy)


@pytest.mark.parametrize("option", ["packed-cross", "softcap-and-bias"])
def test_ops_pass_opcheck(option):
    torch.use_deterministic_algorithms(False)  # opcheck compares runs of its own
    arguments, dy = op_arguments(option)
    torch.library.opcheck(fused.attention_forward, arguments)
    y, lse = fused.attention_forward(*arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    everything = [True, True, True, arguments[3] is not None]
    for wanted, joined in ((everything, False), ([False, True, False, False], False), ([False] * 4, False)):
        torch.library.opcheck(fused.attention_backward, (dy, y.detach(), lse.detach(), *plain, wanted, joined))


# --- queries, keys and values that are neighbours ---


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


def test_decode_op_passes_opcheck():
    torch.use_deterministic_algorithms(False)
    (q, k, v), _ = inputs((2, 1, 40, 2, 1, 16), torch.float32, requires_grad=False)
    arguments = (moved(q), moved(k), moved(v), *[None] * 6, None, 0, None, 0.0, 0.3)
    torch.library.opcheck(fused.decode, arguments)


@pytest.mark.parametrize("option", ["packed-cross", "softcap-and-bias"])
def test_compiles_whole(option):
    torch.use_deterministic_algorithms(False)
    tensors, dy, o = prepared(option, torch.float32)
    o = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in o.items()}
    tensors, dy = [moved(x) for x in tensors], moved(dy)
    with mk.backend("fused"):
        torch._dynamo.reset()
        compiled = torch.compile(mk.attention, backend="aot_eager", fullgraph=True)
        for x, y in zip(run(mk.attention, tensors, dy, o), run(compiled, tensors, dy, o), strict=True):
            assert torch.equal(x, y)


def test_works_under_activation_checkpointing():
    tensors, dy = inputs(SMALL, torch.float32)
    o = {"causal": True, "dropout_p": 0.3, "seed": 5}

    def recomputed(*tensors, **o):
        return checkpoint(lambda *t: mk.attention(*t, **o), *tensors, use_reentrant=False)

    with mk.backend("fused"):
        there = [moved(x) for x in tensors]
        for x, y in zip(run(mk.attention, there, moved(dy), o), run(recomputed, there, moved(dy), o), strict=True):
            assert torch.equal(x, y)


class Projected(torch.nn.Module):
    """Attention between two linear maps, as a layer has it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.output = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 1, 16).unbind(2)
        return (
            self.output(mk.attention(q, k, v, causal=True).flatten(2)) * 1.0
        )  # FSDP2 warns of a result that is a view


def test_works_under_fsdp2(tmp_path):
    torch.use_deterministic_algorithms(False)  # the linear maps' products
    distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        model = Projected().to(DEVICE)
        x = torch.randn(2, 5, 16).to(DEVICE)
        with mk.backend("fused"):
            model(x).sum().backward()
            expected = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            fully_shard(model, mesh=init_device_mesh(DEVICE, (1,)))
            model(x).sum().backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad.full_tensor(), gradient)
    finally:
        distributed.destroy_process_group()


def test_operations_are_counted():
    (q, k, v), dy = inputs((2, 5, 7, 4, 2, 8), torch.float32)
    with mk.backend("fused"), FlopCounterMode(display=False) as counter:
        mk.attention(*(moved(x).requires_grad_() for x in (q, k, v))).backward(moved(dy))
    assert counter.get_total_flops() == 3.5 * 4 * 2 * 4 * 5 * 7 * 8


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=["q", "k", "v", "k-v"])
def test_operations_of_gradients_that_nobody_wants_are_not_counted(wanted):
    """Scores and dP are made for any of them, two products, and one more for each."""
    (q, k, v), dy = inputs((2, 5, 7, 4, 2, 8), torch.float32)
    there = [moved(x).requires_grad_(bool(one)) for x, one in zip((q, k, v), wanted, strict=True)]
    with mk.backend("fused"), FlopCounterMode(display=False) as counter:
        mk.attention(*there).backward(moved(dy))
    assert counter.get_total_flops() == (2 + 2 + sum(wanted)) * 2 * 2 * 4 * 5 * 7 * 8


KERNELS_FOR = {  # which of q, k, v, bias learn -> the kernels that a backward pass launches, beside that of delta
    "q": {"dq"},
    "k": {"dk_dv"},
    "v": {"dk_dv"},
    "bias": {"dbias"},
    "q-bias": {"dq", "dbias"},
    "k-v": {"dk_dv"},
    "q-v": {"dq", "dk_dv"},
    "q-k-v-bias": {"dq", "dk_dv", "dbias"},
}


@pytest.mark.parametrize("learn", KERNELS_FOR)
def test_only_the_kernels_of_wanted_gradients_run_and_give_the_same_bits(learn, monkeypatch):
    tensors, dy, o = prepared("softcap-and-bias", torch.float16)
    expected = dict(zip(("q", "k", "v", "bias"), run_fused(tensors, dy, o)[1:], strict=True))
    ran, launch = [], configs.run
    monkeypatch.setattr(configs, "run", lambda kernel, *rest: ran.append(kernel) or launch(kernel, *rest))
    names = learn.split("-")
    there = {name: moved(x) for name, x in zip(expected, tensors, strict=True)}
    wanted = [there[name].requires_grad_() for name in names]
    with mk.backend("fused"):
        y = mk.attention(
            there["q"],
            there["k"],
            there["v"],
            bias=there["bias"],
            **{key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in o.items()},
        )
        gradients = torch.autograd.grad(y, wanted, moved(dy))
    assert sorted(ran) == sorted({"forward"} | KERNELS_FOR[learn])
    for name, found in zip(names, gradients, strict=True):
        assert torch.equal(found.cpu(), expected[name]), name


def test_second_derivative_is_an_error():
    tensors, dy = inputs(SMALL, torch.float32)
    there = [moved(x).requires_grad_() for x in tensors]
    with mk.backend("fused"):
        y = mk.attention(*there)
    (dq,) = torch.autograd.grad(y, there[0], moved(dy).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError):
        dq.sum().backward()


@pytest.mark.parametrize("option", ["causal-fewer-keys", "packed-cross", "everything"])
def test_ops_without_triton_do_the_reference(option, monkeypatch):
    """On a CPU where nothing interprets the kernels."""
    torch.use_deterministic_algorithms(False)
    tensors, dy, o = prepared(option, torch.float32)
    expected = run_fused(tensors, dy, o)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "launches", lambda tensor: False)
        ours = run_fused(tensors, dy, o)
        arguments, _ = op_arguments(option)
        lse = fused.attention_forward(*arguments)[1]
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, fused.attention_forward(*arguments)[1])


# --- spans ---


@pytest.mark.parametrize("option", ["packed-cross", "packed-with-a-tail", "segments", "everything"])
def test_spans_hold_all_that_is_seen(option):
    """From both sides: no pair that sees each other lies outside the span of its query or of its key."""
    (B, T, S, *_), o = OPTIONS[option]
    names = ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")
    masks = Masks(causal=False, window=(None, None), **{name: o.get(name) for name in names})
    spans, backwards = query_spans(masks, B, T, S, torch.device("cpu")), key_spans(masks, B, T, S, torch.device("cpu"))
    seen = masks.visible(T, S, torch.device("cpu"))
    assert spans is not None and backwards is not None and seen is not None
    for b in range(B):
        for i in range(T):
            for j in range(S):
                if seen[min(b, len(seen) - 1), 0, i, j]:
                    assert spans[b, 0, i] <= j < spans[b, 1, i]
                    assert backwards[b, 0, j] <= i < backwards[b, 1, j]
                    assert spans[b, 2, i] == backwards[b, 2, j]


# --- which backend ---


def test_what_the_kernels_cannot_serve_falls_back():
    torch.use_deterministic_algorithms(False)  # another backend's products
    q = torch.zeros(1, 2, 1, 257, device=DEVICE)
    with mk.backend("fused"), pytest.raises(ValueError, match="heads of width 257 are past the kernels' 256"):
        mk.attention(q, q, q)
    assert (mk.attention(q, q, q) == 0).all()


@pytest.mark.parametrize("kernel", ["forward", "dk_dv", "dq", "dbias", "decode"])
@pytest.mark.parametrize("device", configs.DEVICES)
def test_every_call_has_a_launch(device, kernel):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for D in (1, 16, 17, 64, 80, 128, 200, 256):
            for heavy in (True,) if kernel == "dbias" else (False, True):
                found = configs.launch(kernel, device, dtype, D, heavy)
                assert found in configs.neighbours(found)
                assert found.block_m % 16 == found.block_n % 16 == 0


def test_variants_name_every_parameter():
    """A parameter that is left out fails only when the compile report comes to it."""
    found = list(fused.variants())
    assert len({(v.name, v.targets) for v in found}) == len(found)
    for v in found:
        assert list(v.signature) == list(v.kernel.arg_names), v.name
        flat = [name for name, kind in v.signature.items() if kind == "constexpr"]
        assert all(name in v.constants for name in flat), v.name


BEYOND = {
    "key-stop": ({"key_stop": numbers(2**63 - 1, 2**31)}, {"key_stop": numbers(20, 20)}),
    "key-start": ({"key_start": numbers(-(2**63), -(2**31) - 1)}, {"key_start": numbers(0, 0)}),
    "no-key": ({"key_start": numbers(2**40, 3)}, {"key_start": numbers(20, 3)}),
    "prefix": ({"causal": True, "prefix": numbers(2**63 - 1, 2**31)}, {"causal": True, "prefix": numbers(20, 20)}),
}


@pytest.mark.parametrize("T", [1, 20], ids=["decoding", "all-queries"])
@pytest.mark.parametrize("beyond, end", BEYOND.values(), ids=BEYOND)
def test_a_bound_beyond_the_keys_is_their_end(beyond, end, T):
    """Whatever int64 it is, the largest for `no bound` as well: kernels count keys in 32 bits."""
    tensors, dy = inputs((2, T, 20, 2, 2, 16), torch.float32)
    for x, y in zip(run_fused(tensors, dy, beyond), run_fused(tensors, dy, end), strict=True):
        assert torch.equal(x, y)


def test_a_prefix_beyond_a_packed_sequence_is_its_end():
    tensors, dy = inputs((1, 20, 20, 2, 2, 16), torch.float32)
    packed = {"causal": True, "cu_seqlens_q": numbers(0, 7, 20).int()}
    for x, y in zip(*(run_fused(tensors, dy, packed | {"prefix": numbers(n)}) for n in (2**31 - 1, 20)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_all_64_bits_of_a_seed_count(seed):
    """A seed beyond int64 drops what the reference drops."""
    q = torch.randn(1, 8, 1, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = []
    for name in ("fused", "reference"):
        with mk.backend(name):
            found.append(mk.attention(q, q, q, dropout_p=0.5, seed=seed))
    torch.testing.assert_close(*found)
