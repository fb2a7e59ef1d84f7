"""Bytes and operations of every op, against counts by hand, against its tensors and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ops import BENCHMARKS
from benchmarks.ops.registration import Source, in_tuple, leaves_of

BY_HAND = [  # op, sizes, bytes of an element -> bytes and operations of a forward and of a backward pass
    # x 6, y 6, weight 3 elements; dy 6, x 6, dx 6, weight and its gradient 3 each
    ("rms_norm", {"R": 2, "C": 3}, 2, (30, 24, 48, 48)),
    # x, residual, y, s of 6, weight of 3; dy, ds, s, dx of 6, weight and its gradient of 3; one addition more
    ("rms_norm_residual", {"R": 2, "C": 3}, 2, (54, 30, 60, 60)),
    ("layer_norm", {"R": 2, "C": 3}, 4, (72, 42, 108, 84)),  # x, y, two vectors; dy, x, dx, weight, dweight, dbias
    # x, residual, y, s of 6, weight and bias of 3; dy, ds, s, dx of 6, weight, dweight, dbias of 3
    ("layer_norm_residual", {"R": 2, "C": 3}, 4, (120, 48, 132, 96)),
    ("relu", {"R": 2, "C": 3}, 4, (48, 6, 72, 12)),  # x, y; dy, x, dx
    ("gelu", {"R": 2, "C": 3}, 2, (24, 90, 36, 180)),  # 15 an element, as the catalogue says
    ("gelu_tanh", {"R": 2, "C": 3}, 2, (24, 90, 36, 180)),
    ("relu2", {"R": 2, "C": 3}, 2, (24, 12, 36, 24)),
    ("geglu", {"R": 2, "C": 3}, 2, (36, 96, 60, 192)),
    ("swiglu", {"R": 2, "C": 3}, 2, (36, 36, 60, 72)),  # gate, up, y; dy, gate, up and two gradients
    ("dropout", {"R": 2, "C": 3}, 2, (24, 12, 24, 24)),  # x, y; dy, dx
    # x, y of 6, bias of 3; dy, x, dx of 6, bias and its gradient of 3; an addition, and dropout's 2, beside gelu's 15
    ("gelu_bias_dropout", {"R": 2, "C": 3}, 2, (30, 108, 48, 216)),
    ("swiglu_dropout", {"R": 2, "C": 3}, 2, (36, 48, 60, 96)),
    # q 8, k 4 elements read and written; 2 tables of 2 positions and 1 pair in float32
    ("rotary", {"B": 1, "T": 2, "H": 2, "Hkv": 1, "D": 2}, 2, (64, 36, 64, 36)),
    # 3 rows of 4 read and written, 3 tokens; 3 rows and tokens read, 5 rows written
    ("embedding", {"N": 3, "V": 5, "C": 4}, 4, (120, 0, 152, 12)),
    # q, y of 4, k, v of 4 elements; scores and values: 2 products of 2 * 2 * 2 multiply-adds; 5 in the backward pass
    ("attention_full", {"B": 1, "T": 2, "S": 2, "H": 1, "Hkv": 1, "D": 2}, 2, (32, 32, 64, 80)),
    ("attention_causal", {"B": 1, "T": 2, "S": 2, "H": 1, "Hkv": 1, "D": 2}, 2, (32, 16, 64, 40)),
    # one query of 4 elements beside 3 keys and values of 2: 2 products of 2 heads * 3 * 2 multiply-adds
    ("attention_decode", {"B": 1, "T": 1, "S": 3, "H": 2, "Hkv": 1, "D": 2}, 2, (40, 48, 80, 120)),
    ("cross_entropy", {"R": 2, "V": 5}, 4, (56, 50, 96, 50)),
    # hidden 8, weight 20 elements; 2 * 2 * 5 * 4 operations, twice that for the gradients
    ("linear_cross_entropy", {"R": 2, "C": 4, "V": 5}, 2, (72, 80, 128, 160)),
]


@pytest.mark.parametrize("op, dims, itemsize, expected", BY_HAND, ids=[case[0] for case in BY_HAND])
def test_counts_are_those_by_hand(op, dims, itemsize, expected):
    cost = BENCHMARKS[op].cost(dims, itemsize)
    assert (cost.forward_bytes, cost.forward_flops, cost.backward_bytes, cost.backward_flops) == expected


def test_every_op_is_counted_by_hand():
    assert {case[0] for case in BY_HAND} == set(BENCHMARKS)


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n != "embedding"])  # it reads a part of its table
def test_forward_bytes_are_those_of_the_tensors(name):
    """What goes in and what comes out is moved once; a loss of one number may be left out."""
    benchmark = BENCHMARKS[name]
    dims = benchmark.shapes["cpu"][0].dims
    tensors = benchmark.inputs(dims, torch.float32, Source(torch.device("cpu")))
    outputs = in_tuple(benchmark.provider("torch", dims, torch.device("cpu"))(tensors))
    moved = sum(t.numel() * t.itemsize for t in (*tensors.values(), *outputs))
    assert moved - 4 <= benchmark.cost(dims, 4).forward_bytes <= moved


SINGLE_PRODUCTS = {  # ops of matrix products -> a provider that writes them as single ones, which the counter knows
    "attention_full": "SDPA math",
    "attention_causal": "SDPA math",
    "attention_decode": "SDPA math",
    "linear_cross_entropy": "F.linear, F.cross_entropy",
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_operations_of_products_are_those_of_torchs_counter(name):
    """The counter knows products alone: it counts none where the registration names the vector units."""
    benchmark = BENCHMARKS[name]
    dims = {n: max(1, size // 4) for n, size in benchmark.shapes["cpu"][0].dims.items()}
    tensors = benchmark.inputs(dims, torch.float32, Source(torch.device("cpu")))
    leaves = {n: t.requires_grad_() for n, t in leaves_of(benchmark, tensors).items()}
    cost = benchmark.cost(dims, 4)
    run = benchmark.provider(SINGLE_PRODUCTS.get(name, "reference"), dims, torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = in_tuple(run(tensors))
    forward = counter.get_total_flops()
    with counter:
        torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(y) for y in outputs])
    backward = counter.get_total_flops()
    if cost.unit == "vector":
        assert (forward, backward) == (0, 0) and name not in SINGLE_PRODUCTS
        return
    # Causal or not, single products compute all pairs. The scores are kept, not computed once more as a kernel does:
    # that product is the fifth of five.
    pairs = 2 if name == "attention_causal" else 1
    assert forward == pairs * cost.forward_flops
    assert backward == pytest.approx((4 / 5 if "attention" in name else 1) * pairs * cost.backward_flops)


def test_both_passes_are_their_sum():
    cost = BENCHMARKS["relu"].cost({"R": 2, "C": 3}, 4)
    assert cost.of("forward") == (48, 6)
    assert cost.of("forward+backward") == (120, 18)
