"""Blocks that are computed anew in the backward pass: the same gradients, less memory."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from minillm.data.batch import Batch
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.config import ObjectiveConfig
from minillm.training.gradient import add_gradient, targets_in

V, B, T, C = 31, 4, 32, 64
PRE = {"dropout": 0.2, "attention_dropout": 0.1, "position": "rotary", "activation": "swiglu", "qk_norm": True}
POST = {"kind": "encoder", "dropout": 0.2, "attention_dropout": 0.1, "norm_position": "post", "embedding_norm": True}


def model_of(dtype=torch.float32, num_layers=3, recompute=False, **choices):
    """A model in training mode, the same weights for the same settings."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context": T, "num_layers": num_layers, "width": C, "num_heads": 2}
    model = build_model(ModelConfig(**shape | choices)).train()
    model.compute_in(dtype)
    if recompute:
        model.recompute_blocks()
    return model


def batch_of(rows=B):
    """Rows of two documents each."""
    tokens = torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1))
    segments = (torch.arange(T) >= 5).long().expand(rows, T)
    return Batch(tokens=tokens, targets=tokens.roll(-1, 1), segments=segments, seed=7)


def gradients(model, micro_batches=1):
    """(loss, gradient of every parameter)."""
    batch = batch_of()
    loss, _ = add_gradient(
        model,
        CausalLM(ObjectiveConfig()),
        batch,
        count=targets_in(batch),
        micro_batches=micro_batches,
        device=torch.device("cpu"),
    )
    return loss, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("choices", [PRE, POST], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_the_same_bits(choices, dtype, micro_batches):
    """With dropout, which the second pass must drop again as in the first one."""
    plain = gradients(model_of(dtype, **choices), micro_batches)
    again = gradients(model_of(dtype, recompute=True, **choices), micro_batches)
    assert torch.equal(plain[0], again[0]) and len(plain[1]) == len(again[1]) > 20
    assert all(torch.equal(one, two) for one, two in zip(plain[1], again[1], strict=True))
    other = gradients(model_of(dtype, recompute=True, **choices | {"dropout": 0.0}), micro_batches)
    assert not torch.equal(other[0], again[0])  # dropout was there


def held_after_forward(model):
    """Bytes that the forward pass allocated and that its result keeps from being freed."""
    batch = batch_of()
    model(batch.tokens, **batch.model_inputs())  # what is allocated once only
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        hidden = model(batch.tokens, **batch.model_inputs())
    assert hidden.requires_grad
    return sum(event.self_cpu_memory_usage for event in recorded.key_averages())


@pytest.mark.parametrize(
    "choices, tensors", [(PRE, 2), (POST, 1)], ids=["pre-norm: stream and update", "post-norm: stream"]
)
def test_a_further_block_costs_the_memory_of_its_inputs(choices, tensors):
    """As the allocator counts it, and the 5 KB of a generator's state; kept whole, a block costs many times that."""
    few, many = (held_after_forward(model_of(num_layers=n, recompute=True, **choices)) for n in (2, 5))
    inputs, block = tensors * B * T * C * 4, (many - few) / 3
    assert inputs <= block < inputs + 5500 < 1.2 * inputs
    few, many = (held_after_forward(model_of(num_layers=n, **choices)) for n in (2, 5))
    assert (many - few) / 3 > 6 * inputs


def test_without_gradients_nothing_is_computed_twice():
    """Evaluation and generation, with a cache too, go straight through."""
    plain, model = model_of(**PRE).eval(), model_of(recompute=True, **PRE).eval()
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    tokens = batch_of().tokens
    with torch.no_grad():
        expected = plain(tokens)
        assert torch.equal(model(tokens), expected)
    cache = model.new_cache(B, T)
    found = torch.cat([model(tokens[:, :9], cache=cache), model(tokens[:, 9:], cache=cache)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == 3


def test_a_block_is_computed_twice_for_its_gradient():
    """Once forward, once on the way back."""
    model = model_of(recompute=True)
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(model)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does that
def test_under_torch_compile():
    """One graph without a break, and the gradients of the eager model."""
    expected, model = gradients(model_of(num_layers=1, **PRE)), model_of(num_layers=1, recompute=True, **PRE)
    model.compile(backend="aot_eager", fullgraph=True)  # a backend that needs no C++ compiler
    loss, found = gradients(model)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(one, two) for one, two in zip(found, expected[1], strict=True))
