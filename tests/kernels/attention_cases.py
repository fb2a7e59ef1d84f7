"""What the tests of attention share: its definition, options, inputs, and when a backend is close enough to the truth.

Who sees whom is spelt out here once more, pair by pair, by the words of the public docstring.
"""

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.philox import uniform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sees(b, i, j, T, S, o):
    """Whether query i of row b sees key j under the options `o`, by the words of the public docstring."""
    if "cu_seqlens_q" in o:
        bounds_q = o["cu_seqlens_q"].tolist()
        bounds_k = o.get("cu_seqlens_k", o["cu_seqlens_q"]).tolist()
        inside = [n for n in range(len(bounds_q) - 1) if bounds_q[n] <= i < bounds_q[n + 1]]
        if not inside or not bounds_k[inside[0]] <= j < bounds_k[inside[0] + 1]:
            return False
        n = inside[0]
        i, j = i - bounds_q[n], j - bounds_k[n]
        T, S = bounds_q[n + 1] - bounds_q[n], bounds_k[n + 1] - bounds_k[n]
    distance = j - (i + S - T)
    left, right = o.get("window", (None, None))
    near = not (o.get("causal") and distance > 0)
    near = near and (left is None or distance >= -left) and (right is None or distance <= right)
    if not near and not ("prefix" in o and j < o["prefix"][b]):
        return False
    if "key_start" in o and j < o["key_start"][b] or "key_stop" in o and j >= o["key_stop"][b]:
        return False
    return not ("segments" in o and o["segments"][b, i] != o["segments"][b, j])


def truth(q, k, v, **o):
    """The definition, by plain autograd in the dtype of q; returns y and the weights before dropout."""
    (B, T, H, D), (S, Hkv) = q.shape, k.shape[1:3]
    k, v = (x.repeat_interleave(H // Hkv, dim=2) for x in (k, v))
    score = torch.einsum("bthd,bshd->bhts", q, k) * (D**-0.5 if o.get("scale") is None else o["scale"])
    if "softcap" in o:
        score = o["softcap"] * torch.tanh(score / o["softcap"])
    if "alibi_slopes" in o:
        distance = torch.arange(S)[None, :] - (torch.arange(T)[:, None] + S - T)
        score = score - o["alibi_slopes"].to(q.dtype)[:, None, None] * distance.abs()
    if "bias" in o:
        score = score + o["bias"].to(q.dtype)
    seen = torch.tensor([[[[sees(b, i, j, T, S, o) for j in range(S)] for i in range(T)]] for b in range(B)])
    score = score.masked_fill(~seen, -torch.inf)
    anything = score.amax(-1, keepdim=True) > -torch.inf
    weights = torch.where(anything, torch.softmax(torch.where(anything, score, 0.0), -1), 0.0)
    used = weights
    if "dropout_p" in o:
        kept = uniform(o["seed"], tuple(weights.shape)) >= o["dropout_p"]
        used = weights * kept / (1 - o["dropout_p"])
    return torch.einsum("bhts,bshd->bthd", used, v), weights


def inputs(shape, dtype, requires_grad=True, seed=0):
    B, T, S, H, Hkv, D = shape
    source = torch.Generator().manual_seed(seed)
    sizes = [(B, T, H, D), (B, S, Hkv, D), (B, S, Hkv, D), (B, T, H, D)]
    q, k, v, dy = (torch.randn(size, generator=source, dtype=torch.float64).to(dtype) for size in sizes)
    return [x.requires_grad_(requires_grad) for x in (q, k, v)], dy


def numbers(*values):
    return torch.tensor(values)


def documents(B, T):
    return (torch.arange(T)[None] * torch.arange(1, B + 1)[:, None]) // max(T // 2, 1)


SMALL = (2, 5, 5, 2, 2, 3)
WIDE = (2, 4, 6, 4, 2, 3)  # more keys than queries, two query heads a key head
TALL = (2, 6, 4, 2, 1, 3)  # fewer keys than queries: a causal query before the first key sees nothing
# name: shape of (B, T, S, H, Hkv, D), options
OPTIONS = {
    "plain": (SMALL, {}),
    "one": ((1, 1, 1, 1, 1, 1), {}),
    "causal": (SMALL, {"causal": True}),
    "causal-more-keys": (WIDE, {"causal": True}),
    "causal-fewer-keys": (TALL, {"causal": True}),
    "decoding": ((2, 1, 7, 4, 2, 3), {"causal": True}),
    "window-left": (SMALL, {"causal": True, "window": (1, None)}),
    "window-right": (WIDE, {"window": (None, 1)}),
    "window-both": (SMALL, {"window": (1, 2)}),
    "window-nothing-but-self": (SMALL, {"window": (0, 0)}),
    "decoding-in-a-window": ((2, 1, 7, 2, 2, 3), {"causal": True, "window": (2, 0)}),
    "key-start": (SMALL, {"causal": True, "key_start": numbers(0, 2)}),
    "key-stop": (WIDE, {"key_stop": numbers(4, 6)}),
    "key-start-and-stop": (WIDE, {"key_start": numbers(1, 0), "key_stop": numbers(4, 0)}),
    "decoding-padded": ((2, 1, 7, 2, 2, 3), {"causal": True, "key_start": numbers(0, 3)}),
    "segments": (SMALL, {"segments": documents(2, 5)}),
    "segments-causal": (SMALL, {"segments": documents(2, 5), "causal": True}),
    "segments-padded": (SMALL, {"segments": documents(2, 5), "key_stop": numbers(5, 2)}),
    "packed": ((1, 7, 7, 2, 2, 3), {"cu_seqlens_q": numbers(0, 3, 4, 7), "causal": True}),
    "packed-cross": (
        (1, 5, 7, 2, 1, 3),
        {"cu_seqlens_q": numbers(0, 2, 2, 5), "cu_seqlens_k": numbers(0, 4, 5, 7), "causal": True},
    ),
    "packed-with-a-tail": ((1, 7, 7, 2, 2, 3), {"cu_seqlens_q": numbers(0, 3, 5).int(), "window": (1, 1)}),
    "prefix": (SMALL, {"causal": True, "prefix": numbers(3, 0)}),
    "prefix-in-a-window": (WIDE, {"window": (1, 0), "prefix": numbers(2, 1)}),
    "alibi": (WIDE, {"causal": True, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}),
    "alibi-both-sides": (SMALL, {"alibi_slopes": torch.tensor([0.5, 0.25])}),
    "bias": (SMALL, {"bias": (2, 2)}),
    "bias-shared-by-rows": (WIDE, {"bias": (1, 4), "causal": True}),
    "bias-shared-by-heads": (SMALL, {"bias": (2, 1), "key_stop": numbers(5, 0)}),
    "bias-shared-by-all": (WIDE, {"bias": (1, 1)}),
    "bias-and-alibi": (SMALL, {"bias": (1, 2), "alibi_slopes": torch.tensor([0.5, 0.25])}),
    "softcap": (WIDE, {"softcap": 0.7, "causal": True}),
    "softcap-and-bias": (SMALL, {"softcap": 0.7, "bias": (1, 2), "key_start": numbers(0, 5)}),
    "softcap-and-bias-of-each": (SMALL, {"softcap": 0.7, "bias": (2, 2)}),
    "dropout": (WIDE, {"dropout_p": 0.4, "seed": 3, "causal": True}),
    "everything": (
        (2, 5, 5, 4, 2, 3),
        {
            "causal": True,
            "window": (2, None),
            "key_stop": numbers(5, 3),
            "segments": documents(2, 5),
            "prefix": numbers(1, 2),
            "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]),
            "bias": (1, 4),
            "softcap": 1.5,
            "dropout_p": 0.3,
            "seed": 2**40 + 2,
        },
    ),
    "scale": (SMALL, {"scale": 0.3}),
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def cancelling(option):
    """The size of the numbers that cancel in dq and dk: where a row sees one key alone, both are 0 as a difference."""
    return 3.0 if option in ("one", "window-nothing-but-self") else 0.0


def prepared(option, dtype):
    """Inputs, upstream gradient and options of a row of OPTIONS, the bias drawn and among the inputs."""
    shape, o = OPTIONS[option]
    tensors, dy = inputs(shape, dtype)
    if "bias" in o:
        source = torch.Generator().manual_seed(1)
        bias = torch.randn(*o["bias"], *shape[1:3], generator=source, dtype=torch.float64).to(dtype)
        tensors.append(bias.requires_grad_())
    return tensors, dy, {key: value for key, value in o.items() if key != "bias"}


def run(function, tensors, dy, o):
    """Output and the gradients of q, k, v and perhaps bias."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    o = o if len(tensors) == 3 else {**o, "bias": tensors[3]}
    y = function(*tensors[:3], **o)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


def run_fused(tensors, dy, o):
    """The same by the kernels, where they run, brought back."""
    there = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in o.items()}
    with mk.backend("fused"):
        return [x.cpu() for x in run(mk.attention, [moved(x) for x in tensors], moved(dy), there)]


def moved(x):
    """A tensor on the device of the kernels, with its strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x.detach())


NAMES = ("y", "dq", "dk", "dv", "dbias")


def assert_close_to_truth(name, tensors, dy, o, terms=0.0):
    """Fail unless the backend's error is at most twice the reference's own in that dtype, plus a rounding floor.

    `terms` is the size of numbers that cancel on the way to an answer near 0: their rounding stays.
    """
    expected = run(lambda *a, **o: truth(*a, **o)[0], [x.double() for x in tensors], dy.double(), o)
    if name == "fused":
        ours = run_fused(tensors, dy, o)
    else:
        with mk.backend(name):
            ours = run(mk.attention, tensors, dy, o)
    assert_close(ours, expected, tensors, dy, o, terms)


def assert_close(ours, expected, tensors, dy, o, terms=0.0):
    """The same for results at hand."""
    dtype = dy.dtype
    with mk.backend("reference"):
        plain = run(mk.attention, tensors, dy, o)
    for what, t, p, x in zip(NAMES, expected, plain, ours, strict=False):
        assert x.dtype == p.dtype and x.shape == t.shape, what
        if t.numel():
            allowed = 2 * (p - t).abs().max() + 4 * torch.finfo(dtype).eps * t.abs().max().clamp(min=terms)
            assert (x - t).abs().max() <= allowed, f"{what}: {(x - t).abs().max():.1e} > {allowed:.1e}"
