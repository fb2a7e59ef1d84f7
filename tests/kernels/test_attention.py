"""attention against its definition in float64, on the backends that need no kernel."""

import minillm_kernels as mk
import numpy as np
import pytest
import torch
from attention_cases import (
    SMALL,
    assert_close_to_truth,
    cancelling,
    each_option,
    inputs,
    numbers,
    prepared,
    run,
    truth,
)
from minillm_kernels.attention import composed
from minillm_kernels.attention.masks import Masks
from minillm_kernels.dispatch import Backend
from torch.utils.flop_counter import FlopCounterMode

BACKENDS: tuple[Backend, ...] = ("reference", "torch")


@each_option
def test_reference_is_the_definition(option):
    tensors, dy, o = prepared(option, torch.float64)
    expected = run(lambda *a, **o: truth(*a, **o)[0], tensors, dy, o)
    with mk.backend("reference"):
        ours = run(mk.attention, tensors, dy, o)
    for t, x in zip(expected, ours, strict=True):
        torch.testing.assert_close(x, t, rtol=1e-12, atol=1e-12)  # a few hundred operations in float64


@each_option
def test_reference_backward_is_the_derivative(option):
    tensors, _, o = prepared(option, torch.float64)

    def function(q, k, v, bias=None):
        return mk.attention(q, k, v, bias=bias, **o)

    with mk.backend("reference"):
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@each_option
def test_composed_is_as_close_to_truth_as_reference(option, dtype, monkeypatch):
    """Products in float32; those in bfloat16, which some CPUs have units for, round more: the test after the next."""
    monkeypatch.setattr(composed, "BF16_CPU", False)
    tensors, dy, o = prepared(option, dtype)
    assert_close_to_truth("torch", tensors, dy, o, terms=cancelling(option))


@pytest.mark.parametrize("faster", [True, False], ids=["products", "sdpa"])
@each_option
def test_both_compositions_are_as_close_in_float32(option, faster, monkeypatch):
    monkeypatch.setattr(composed, "products_are_faster", lambda q, bias: faster)
    tensors, dy, o = prepared(option, torch.float32)
    assert_close_to_truth("torch", tensors, dy, o, terms=cancelling(option))


@each_option
def test_products_in_bfloat16_are_close(option, monkeypatch):
    """What runs on a CPU with bfloat16 units: scores and weights are rounded to 8 bits before they are used."""
    monkeypatch.setattr(composed, "BF16_CPU", True)
    tensors, dy, o = prepared(option, torch.bfloat16)
    expected = run(lambda *a, **o: truth(*a, **o)[0], [x.double() for x in tensors], dy.double(), o)
    for t, x in zip(expected, run(mk.attention, tensors, dy, o), strict=True):
        # scores of size up to 4 are off by 4 * eps / 2, and a weight by as much of itself; some six roundings follow
        assert (x - t).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * t.abs().max().clamp(min=1.0)


SHAPES = [
    pytest.param((2, 7, 7, 2, 2, 17), id="ragged-7-odd-width"),
    pytest.param((1, 100, 100, 4, 1, 16), id="ragged-100-one-key-head"),
    pytest.param((1, 7, 100, 6, 2, 33), id="few-queries"),
    pytest.param((1, 64, 64, 2, 2, 64), id="tile-aligned"),
    pytest.param((1, 33, 33, 2, 1, 80), id="width-80"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("o", [{"causal": True}, {"window": (5, 9)}], ids=["causal", "window"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, o, dtype):
    tensors, dy = inputs(shape, dtype)
    assert_close_to_truth("torch", tensors, dy, o)


@pytest.mark.parametrize("name", BACKENDS)
def test_strided_inputs_are_read_as_they_stand(name):
    """q, k, v as slices of one projection, as a model may make them, against contiguous copies."""
    source = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(2, 7, 3, 2, 8, generator=source).unbind(2)
    with mk.backend(name):
        assert torch.equal(
            mk.attention(q, k, v, causal=True),
            mk.attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True),
        )


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
@pytest.mark.parametrize("name", BACKENDS)
def test_packed_sequences_are_as_if_alone(name, causal):
    lengths_q, lengths_k = [3, 1, 5], [4, 6, 5]
    (q, k, v), _ = inputs((1, 9, 15, 4, 2, 8), torch.float32, requires_grad=False)
    bounds_q, bounds_k = (numbers(0, *torch.tensor(n).cumsum(0).tolist()) for n in (lengths_q, lengths_k))
    slopes = torch.tensor([0.5, 0.3, 0.2, 0.1])
    with mk.backend(name):
        options = {"causal": causal, "window": (3, None), "alibi_slopes": slopes}
        packed = mk.attention(q, k, v, cu_seqlens_q=bounds_q, cu_seqlens_k=bounds_k, **options)
        parts = zip(q.split(lengths_q, 1), k.split(lengths_k, 1), v.split(lengths_k, 1), strict=True)
        alone = torch.cat([mk.attention(*part, **options) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=2e-6)  # sums in another order, values of size 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "o",
    [
        pytest.param({"key_stop": numbers(5, 0)}, id="mask"),
        pytest.param({"key_stop": numbers(5, 0), "softcap": 2.0, "dropout_p": 0.2, "seed": 1}, id="softcap-dropout"),
        pytest.param({"key_stop": numbers(5, 0), "alibi_slopes": torch.ones(2)}, id="alibi"),
    ],
)
def test_query_that_sees_nothing_gets_zeros_and_gives_no_gradient(name, o, dtype):
    tensors, dy = inputs(SMALL, dtype)
    with mk.backend(name):
        y, dq, dk, dv = run(mk.attention, tensors, dy, o)
    for x in (y, dq, dk, dv):
        assert x.isfinite().all()
        assert (x[1] == 0).all()
        assert (x[0] != 0).any()


@pytest.mark.parametrize("name", BACKENDS)
def test_bias_of_minus_infinity_hides(name):
    (q, k, v), dy = inputs(SMALL, torch.float32)
    bias = torch.zeros(1, 1, 5, 5)
    bias[..., 3:] = -torch.inf
    bias[..., 2, :] = -torch.inf
    bias.requires_grad_()
    with mk.backend(name):
        y = mk.attention(q, k, v, bias=bias)
        (dbias,) = torch.autograd.grad(y, bias, dy)
        expected = mk.attention(q, k, v, key_stop=numbers(3, 3))
    assert (y[:, 2] == 0).all()
    rows = [0, 1, 3, 4]
    torch.testing.assert_close(y[:, rows], expected[:, rows])
    assert dbias.isfinite().all()
    assert (dbias[..., 3:] == 0).all()


@pytest.mark.parametrize("units, atol", [(False, 1e-6), (True, 2**-8)], ids=["no-bf16-units", "bf16-units"])
def test_alibi_keeps_its_steps_in_bfloat16(units, atol, monkeypatch):
    """Equal keys and a slope of 1/8: in bfloat16 the distances 512 to 515 would all be one number.

    That would be an error of 0.05. With bfloat16 units the weights, whose sum is 1, are rounded before they meet
    values of size 1: an error of eps / 2 at most.
    """
    monkeypatch.setattr(composed, "BF16_CPU", units)
    S = 600
    far = torch.zeros(1, 1, 1, S)
    far[..., -512:] = -torch.inf  # so that only keys far from the query count
    q, k = torch.zeros(1, 1, 1, 16).bfloat16(), torch.zeros(1, S, 1, 16).bfloat16()
    v = torch.randn(1, S, 1, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    slopes = torch.tensor([0.125])
    expected, _ = truth(q.double(), k.double(), v.double(), alibi_slopes=slopes, bias=far)
    y = mk.attention(q, k, v, alibi_slopes=slopes, bias=far)
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=atol)  # rtol: the rounding of the result


def test_dropout_is_the_same_on_both_backends_and_drops_p():
    """With one-hot values the output is the weights themselves, so each one can be seen to be dropped or kept."""
    (q, k, _), _ = inputs((2, 40, 40, 3, 3, 40), torch.float32, requires_grad=False)
    v = torch.eye(40)[None, :, None].expand(2, 40, 3, 40).contiguous()
    zeros = []
    for name in BACKENDS:
        with mk.backend(name):
            zeros.append(mk.attention(q, k, v, dropout_p=0.25, seed=8) == 0)
    assert torch.equal(*zeros)
    count = zeros[0].numel()
    assert abs(zeros[0].sum().item() - 0.25 * count) < 4 * (count * 0.25 * 0.75) ** 0.5


@each_option
def test_weights_are_the_definition(option):
    tensors, _, o = prepared(option, torch.float64)
    o = o if len(tensors) == 3 else {**o, "bias": tensors[3]}
    _, expected = truth(*tensors[:3], **o)
    without_dropout = {key: value for key, value in o.items() if key not in ("dropout_p", "seed")}
    torch.testing.assert_close(mk.attention_weights(*tensors[:2], **without_dropout), expected, rtol=1e-12, atol=1e-12)


def test_decoding_builds_no_mask():
    """One query, causal, nothing padded: the model's inner loop."""
    masks = Masks(causal=True)
    assert masks.visible(1, 1000, torch.device("cpu")) is None
    prefilled = masks.visible(3, 8, torch.device("cpu"))
    assert prefilled is not None
    assert tuple(prefilled.shape) == (1, 1, 3, 8)


PRODUCTS = {"q": 2, "k": 2, "v": 1, "bias": 1, "q-k": 3, "k-v": 3, "q-bias": 2, "q-k-v-bias": 4}


@pytest.mark.parametrize("learn", PRODUCTS)
def test_composed_takes_only_the_products_of_wanted_gradients(learn):
    """dv takes one product, dP one for all others, dq and dk one more each; the bits are those of all together."""
    tensors, dy, o = prepared("softcap-and-bias-of-each", torch.float32)
    expected = dict(zip(("q", "k", "v", "bias"), run(mk.attention, tensors, dy, o)[1:], strict=True))
    given = {name: x.detach() for name, x in zip(expected, tensors, strict=True)}
    wanted = [given[name].requires_grad_() for name in learn.split("-")]
    y = mk.attention(given["q"], given["k"], given["v"], bias=given["bias"], **o)
    with FlopCounterMode(display=False) as counter:
        gradients = torch.autograd.grad(y, wanted, dy)
    B, T, H, D = dy.shape
    assert counter.get_total_flops() == PRODUCTS[learn] * 2 * B * H * T * T * D
    for name, found in zip(learn.split("-"), gradients, strict=True):
        assert torch.equal(found, expected[name]), name


# PyTorch's own tracer makes an instance of the autograd function, and is warned by PyTorch for it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("option", ["causal", "key-start", "packed-cross", "bias", "everything"])
def test_traces_whole(option, name):
    tensors, dy, o = prepared(option, torch.float32)
    with mk.backend(name):
        torch._dynamo.reset()
        compiled = torch.compile(mk.attention, backend="eager", fullgraph=True)
        for t, x in zip(run(mk.attention, tensors, dy, o), run(compiled, tensors, dy, o), strict=True):
            torch.testing.assert_close(x, t)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "S, Hkv", [pytest.param(5, 2, id="square"), pytest.param(8, 2, id="cross"), pytest.param(5, 1, id="grouped")]
)
@pytest.mark.parametrize("name", BACKENDS)
def test_traces_whole_with_sizes_held_open(name, S, Hkv):
    q, k, v = torch.randn(2, 5, 2, 8), torch.randn(2, S, Hkv, 8), torch.randn(2, S, Hkv, 8)
    expected = truth(q.double(), k.double(), v.double(), causal=True)[0]
    with mk.backend(name):
        torch._dynamo.reset()
        compiled = torch.compile(mk.attention, backend="eager", fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(q, k, v, causal=True).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("o", [{}, {"causal": True, "softcap": 2.0, "dropout_p": 0.5, "seed": 1}], ids=["plain", "all"])
@pytest.mark.parametrize("learns", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", (*BACKENDS, "fused"))
@pytest.mark.parametrize("B, T, S", [(0, 3, 3), (2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_of_nothing_comes_zero(B, T, S, name, learns, o):
    """Without keys every query gets zeros, and what is there gets gradients of zeros."""
    shapes = {"q": (B, T, 4, 8), "k": (B, S, 2, 8), "v": (B, S, 2, 8)} | ({"bias": (1, 4, T, S)} if learns else {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {key: torch.randn(shape, requires_grad=True, device=device) for key, shape in shapes.items()}
    with mk.backend(name):
        y = mk.attention(**tensors, **o)
        found = [y, *torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))]
    for x, shape in zip(found, [shapes["q"], *shapes.values()], strict=True):
        assert torch.equal(x.cpu(), torch.zeros(shape))


def wrong(text, error=ValueError, q=(2, 3, 4, 8), k=(2, 3, 2, 8), **options):
    return q, k, options, error, text


WRONG = {
    "rank": wrong(r"q must be \(B, T, H, D\), got \(3, 4, 8\)", q=(3, 4, 8)),
    "batch": wrong("the batch and width of q", k=(1, 3, 2, 8)),
    "width": wrong("the batch and width of q", k=(2, 3, 2, 4)),
    "no-head": wrong("1 head or more", q=(2, 3, 0, 8), k=(2, 3, 1, 8)),
    "no-width": wrong("heads of width 1 or more", q=(2, 3, 4, 0), k=(2, 3, 4, 0)),
    "key-stop-floats": wrong("key_stop must hold integers, got torch.float32", TypeError, key_stop=torch.ones(2)),
    "segments-bools": wrong("segments must hold integers", TypeError, segments=torch.ones(2, 3).bool()),
    "window-one-number": wrong(r"window must be \(left, right\), got 3", window=3),
    "window-floats": wrong("in whole tokens", TypeError, window=(1.0, None)),
    "window-numpy": wrong("in whole tokens", TypeError, window=(np.uint8(5), 0)),  # -np.uint8(5) is 251
    "window-past-64-bits": wrong("0 or more and of 64 bits, or None, got", window=(2**70, None)),
    "packed-no-sequence": wrong(r"got \(1,\)", q=(1, 3, 4, 8), k=(1, 3, 2, 8), cu_seqlens_q=torch.tensor([0])),
    "alibi-integers": wrong("alibi_slopes must be float", TypeError, alibi_slopes=torch.ones(4).long()),
    "softcap-without-end": wrong("above 0 and finite, got inf", softcap=float("inf")),
    "seed": wrong("seed must be an int or a 0-dim int64 tensor", TypeError, dropout_p=0.1, seed=torch.ones(2)),
    "heads": wrong(r"the heads of k \(3\) must divide the heads of q \(4\)", k=(2, 3, 3, 8)),
    "key-stop": wrong(r"key_stop must be \(2,\)", key_stop=torch.ones(3).long()),
    "window": wrong(r"got \(-1, 0\)", window=(-1, 0)),
    "causal-and-keys-on-the-right": wrong(
        r"causal=True hides .* window=\(2, 1\) .* pass window=\(2, 0\), or causal=False", causal=True, window=(2, 1)
    ),
    "segments": wrong(r"segments must be \(2, 3\)", segments=torch.ones(2, 4).long()),
    "segments-cross": wrong("as many keys as queries, got T=3, S=5", k=(2, 5, 2, 8), segments=torch.ones(2, 3).long()),
    "packed-batch": wrong("got B=2", cu_seqlens_q=torch.tensor([0, 3])),
    "packed-from-1": wrong("got 1 at .0.", q=(1, 3, 4, 8), k=(1, 3, 2, 8), cu_seqlens_q=torch.tensor([1, 3])),
    "packed-falling": wrong(
        "cu_seqlens_k must be 0, .* got 2 at .2.",
        q=(1, 3, 4, 8),
        k=(1, 3, 2, 8),
        cu_seqlens_q=torch.tensor([0, 1, 3]),
        cu_seqlens_k=torch.tensor([0, 3, 2]),
    ),
    "packed-keys-alone": wrong("pass both", cu_seqlens_k=torch.tensor([0, 3])),
    "packed-cross": wrong("pass cu_seqlens_k too", q=(1, 3, 4, 8), k=(1, 5, 2, 8), cu_seqlens_q=torch.tensor([0, 3])),
    "prefix": wrong(r"prefix must be \(2,\)", prefix=torch.ones(3).long()),
    "alibi": wrong("one slope a head", alibi_slopes=torch.ones(2)),
    "bias": wrong("1 or H, T, S", bias=torch.ones(1, 2, 3, 3)),
    "softcap": wrong("softcap must be above 0", softcap=0.0),
    "dropout": wrong("needs a seed", dropout_p=0.1),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_told(case):
    q, k, options, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        mk.attention(torch.zeros(q), torch.zeros(k), torch.zeros(k), **options)


def test_one_dtype_for_all():
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(TypeError, match="k is torch.bfloat16, q torch.float32"):
        mk.attention(q, q.bfloat16(), q)
    with pytest.raises(TypeError, match="v is torch.bfloat16, q torch.float32"):
        mk.attention(q, q, q.bfloat16())


@pytest.mark.parametrize("name", ["k", "bias", "key_stop", "seed"])
def test_one_device_for_all(name):
    q = torch.zeros(1, 2, 1, 4)
    elsewhere = {
        "k": torch.zeros(1, 2, 1, 4, device="meta"),
        "bias": torch.zeros(1, 1, 2, 2, device="meta"),
        "key_stop": torch.zeros(1, dtype=torch.int64, device="meta"),
        "seed": torch.zeros((), dtype=torch.int64, device="meta"),
    }
    options = {key: x for key, x in elsewhere.items() if key == name != "k"}
    k = elsewhere["k"] if name == "k" else q
    with pytest.raises(ValueError, match=f"{name} is on meta, q on cpu; move one"):
        mk.attention(q, k, q, dropout_p=0.1 if name == "seed" else 0.0, **options)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_second_derivative_is_refused(name):
    """What the forward pass kept is a constant to autograd: an answer would be a wrong number without a word."""
    (q, k, v), dy = inputs((1, 3, 3, 1, 1, 4), torch.float64)
    with mk.backend(name):
        y = mk.attention(q, k, v, softcap=2.0)
    with pytest.raises(RuntimeError, match="by hand has no second derivative"):
        torch.autograd.grad(y, q, dy.requires_grad_(), create_graph=True)
