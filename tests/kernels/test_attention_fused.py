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
from minillm_kernels.attention import configs, fused
from minillm_kernels.attention.masks import Masks
from minillm_kernels.attention.spans import key_spans, query_spans
from minillm_kernels.philox import uniform

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.usefixtures("empty_is_nan")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


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
    "right": {"window": (None, 30)},
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


def test_keys_begin_and_end_anywhere_in_a_tile():
    """Each row of the batch has another key of the first tile as its first, and another of the second as its last."""
    tensors, dy = inputs((17, 16, 32, 1, 1, 16), torch.float32)
    o = {"key_start": torch.arange(17), "key_stop": 32 - torch.arange(17)}
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


def test_documents_in_pieces_hide_keys_of_every_tile():
    """Each of three documents reaches from the first tile to the last, and the tiles between hold all of them."""
    tensors, dy = inputs((1, 50, 50, 1, 1, 16), torch.float32)
    assert_close_to_truth("fused", tensors, dy, {"segments": torch.arange(50)[None] % 3})


def test_a_bias_of_minus_infinity_hides_whole_tiles_and_rows():
    """No mask tells the kernels that nothing is to be seen there."""
    tensors, dy = inputs((1, 5, 48, 1, 1, 16), torch.float32)
    bias = torch.randn(1, 1, 5, 48, generator=torch.Generator().manual_seed(1))
    bias[..., :20] = bias[..., 2, :] = -torch.inf
    assert_close_to_truth("fused", [*tensors, bias], dy, {})


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


MASKS_APART = {
    "keys": {"key_start": numbers(0, 2), "key_stop": numbers(5, 4), "causal": True, "prefix": numbers(1, 3)},
    "segments": {"segments": torch.tensor([[1, 1, 2, 2, 3], [5, 6, 6, 6, 6]])},
    "packed": {"cu_seqlens_q": numbers(0, 3, 5), "cu_seqlens_k": numbers(0, 1, 5)},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.1])},
}


@pytest.mark.parametrize("options", MASKS_APART.values(), ids=MASKS_APART)
def test_masks_are_read_where_they_lie(options):
    """As columns of a table whose other column has other numbers."""
    tensors, dy = inputs((1 if "cu_seqlens_q" in options else 2, 5, 5, 2, 1, 16), torch.float32)
    there = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in options.items()}
    apart = {key: torch.stack((x, x + 1), -1)[..., 0] if isinstance(x, torch.Tensor) else x for key, x in there.items()}
    for x, y in zip(run_fused(tensors, dy, apart), run_fused(tensors, dy, there), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("memory_is_given_back")
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


def assert_decoded(q, k, v, o):
    """Fail unless a call without gradient is the definition."""
    with torch.no_grad(), mk.backend("fused"):
        there = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in o.items()}
        y = mk.attention(moved(q), moved(k), moved(v), **there).cpu()
    torch.testing.assert_close(y.double(), truth(q.double(), k.double(), v.double(), **o)[0], rtol=0, atol=2e-6)


def test_decoding_reads_a_window_from_its_first_key():
    """Whichever key of a tile of 16 that is."""
    (q, k, v), _ = inputs((1, 2, 70, 1, 1, 16), torch.float32, requires_grad=False)
    for left in range(20, 36):
        assert_decoded(q, k, v, {"causal": True, "window": (left, None)})


def test_decoding_reads_keys_that_begin_and_end_anywhere_in_a_tile():
    (q, k, v), _ = inputs((17, 1, 40, 1, 1, 16), torch.float32, requires_grad=False)
    assert_decoded(q, k, v, {"key_start": torch.arange(17), "key_stop": 40 - torch.arange(17)})


def test_few_queries_of_packed_sequences_see_their_own_keys_without_gradient_too():
    """The kernels for decoding know of no sequences."""
    (q, k, v), _ = inputs((1, 2, 40, 2, 1, 16), torch.float32, requires_grad=False)
    assert_decoded(q, k, v, {"causal": True, "cu_seqlens_q": numbers(0, 1, 2), "cu_seqlens_k": numbers(0, 17, 40)})


def test_a_bias_learns_alone_of_one_query():
    """The kernels for decoding have no backward pass."""
    (q, k, v), dy = inputs((2, 1, 40, 2, 1, 16), torch.float32, requires_grad=False)
    bias = torch.randn(1, 2, 1, 40, generator=torch.Generator().manual_seed(1))
    wide, there = bias.double().requires_grad_(), bias.to(DEVICE).requires_grad_()
    y, _ = truth(q.double(), k.double(), v.double(), bias=wide)
    (expected,) = torch.autograd.grad(y, wide, dy.double())
    with mk.backend("fused"):
        (found,) = torch.autograd.grad(mk.attention(moved(q), moved(k), moved(v), bias=there), there, moved(dy))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=2e-6)


def test_weights_that_stay_are_scaled_by_p_itself():
    """1 - 0.993 in float32 is 4e-6 of itself off. Equal keys weigh the same: a query's sum counts those that stay."""
    q, v = torch.zeros(1, 1, 4, 1, device=DEVICE), torch.ones(1, 256, 4, 1, device=DEVICE)
    kept = (uniform(1, (4, 256)) >= 0.993).sum(1).double()
    assert kept.all()
    with mk.backend("fused"):
        y = mk.attention(q, torch.zeros_like(v), v, dropout_p=0.993, seed=1).cpu()
    torch.testing.assert_close(y.flatten().double(), kept / (1 - 0.993) / 256, rtol=2**-20, atol=0)


def test_decoding_is_split():
    from minillm_kernels.attention.decode import split_size

    assert split_size(4096, 8, 64) == 128  # 32 programs a key head: 256 in all
    assert split_size(4096, 1000, 64) == 4096  # heads enough
    assert split_size(40, 1, 64) == 64


# --- spans ---


@pytest.mark.parametrize("option", ["packed-cross", "packed-with-a-tail", "segments", "everything"])
def test_spans_hold_all_that_is_seen(option):
    """From both sides: no pair that sees each other lies outside the span of its query or of its key."""
    (B, T, S, *_), o = OPTIONS[option]
    names = ("key_start", "key_stop", "segments", "cu_seqlens_q", "cu_seqlens_k", "prefix")
    masks = Masks(**{name: o.get(name) for name in names})
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
    q, bias = q[..., :8], torch.zeros(1, 1, 2, 2, dtype=torch.float64, device=DEVICE)
    with mk.backend("fused"), pytest.raises(ValueError, match="a float64 bias has no kernel"):
        mk.attention(q, q, q, bias=bias)
    assert (mk.attention(q, q, q, bias=bias) == 0).all()


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


@pytest.mark.parametrize("q, k", [((0, 3, 18), (0, 4, 40)), ((0, 3, 40), (0, 4, 20))], ids=["keys", "queries"])
def test_a_sequence_that_is_said_to_go_on_ends_with_the_tensor(q, k):
    tensors, dy = inputs((1, 18, 20, 1, 1, 16), torch.float32)
    assert_close_to_truth("fused", tensors, dy, {"cu_seqlens_q": numbers(*q), "cu_seqlens_k": numbers(*k)})


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
