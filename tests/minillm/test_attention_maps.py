"""Maps against what the fused kernels made of the same pass, against counting, and that nobody notices the look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from minillm_kernels.dispatch import backend
from torch import Tensor

from minillm.attention_maps import attention_maps
from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach, merge
from minillm.finetune.adapters.config import HoulsbyConfig, LoRAConfig, PrefixConfig
from minillm.model import layers
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer, build_model

RIGHT = {"lengths": torch.tensor([7, 4, 1])}
LEFT = {"starts": torch.tensor([0, 3, 6])}
DOCUMENTS = {"segments": torch.tensor([[0] * 7, [0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1]])}
LOCAL = {"window": 2, "global_every": 2}
GROUPED = {"num_heads": 4, "num_kv_heads": 2, "position": "rotary", "qk_norm": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {  # kind, of the model, of the pass, prefix
    "causal": ("decoder", {}, {}, 0),
    "both-sides": ("encoder", {}, {}, 0),
    "window": ("decoder", LOCAL, {}, 0),
    "window-both-sides": ("encoder", LOCAL, RIGHT, 0),
    "padding-right": ("encoder", {}, RIGHT, 0),
    "padding-left": ("decoder", {}, LEFT, 0),
    "documents": ("decoder", {}, DOCUMENTS, 0),
    "window-documents": ("encoder", LOCAL, DOCUMENTS, 0),
    "alibi": ("decoder", {"position": "alibi"}, RIGHT, 0),
    "softcap": ("encoder", {"attention_softcap": 1.5}, {}, 0),
    "grouped-rotary": ("decoder", GROUPED, LEFT, 0),
    "multi-query": ("encoder", GROUPED | {"num_kv_heads": 1}, {}, 0),
    "prefix": ("decoder", {}, {}, 3),
    "prefix-padding-left": ("encoder", LOCAL, LEFT, 3),
    "prefix-alibi-documents": ("decoder", {"position": "alibi"}, DOCUMENTS, 3),
    "prefix-grouped": ("decoder", GROUPED, RIGHT, 2),
}


def make(kind: Any = "decoder", prefix: int = 0, **shape: Any) -> Transformer:
    """Return a model of two layers whose weights are far from alike, with a learned prefix or without."""
    torch.manual_seed(0)
    plain = {"vocab_size": 19, "context": 12, "num_layers": 2, "width": 32, "num_heads": 2, "init_std": 0.4}
    model = build_model(ModelConfig(kind=kind, **(plain | shape))).eval()
    if prefix:
        attach(model, PrefixConfig(length=prefix))
        stir(model)
    return model


def stir(model: Transformer) -> None:
    """Move what learns, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(3))


@contextmanager
def recorded(model: Transformer) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Yield layer -> what its attention hands the output projection (B, T, H D), and layer -> values (B, S, Hkv, D)."""
    made: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    handles = []
    for module in [m for m in model.modules() if isinstance(m, layers.Attention)]:
        handles += [
            module.output.register_forward_pre_hook(lambda _, x, n=module.layer: made.update({n: x[0]})),
            module.register_forward_pre_hook(lambda m, x: values.update({m.layer: m.queries_and_seen(*x)[1].v})),
        ]
    with torch.no_grad():
        yield made, values
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind, shape, inputs, prefix", CASES.values(), ids=CASES)
def test_a_map_times_the_values_is_what_the_fused_kernel_made(kind, shape, inputs, prefix):
    """Every row, those at padding too; the kernel's own sums are in another order, so to float32's rounding."""
    model, tokens = make(kind, prefix, **shape), some_tokens(3, 7)
    with backend("fused"):
        with recorded(model) as (made, values):
            model(tokens, **inputs)
        maps = attention_maps(model, tokens, **inputs)
    assert list(maps) == [0, 1]
    for layer, P in maps.items():
        v = values[layer].repeat_interleave(P.shape[1] // values[layer].shape[2], dim=2)  # (B, S, H, D)
        assert P.shape == (3, model.config.num_heads, 7, 7 + prefix)
        y = torch.einsum("bhij,bjhd->bihd", P, v).flatten(2)
        torch.testing.assert_close(y, made[layer], rtol=1e-5, atol=1e-5)
        assert P.std() > 0.05  # not all alike


@pytest.mark.parametrize(
    "kind, shape, inputs, counts",
    [
        ("decoder", {}, {}, [1, 2, 3, 4, 5]),
        ("encoder", {}, {}, [5, 5, 5, 5, 5]),
        ("encoder", {}, {"lengths": torch.tensor([3])}, [3, 3, 3, 3, 3]),
        ("decoder", {"window": 2, "global_every": 0}, {}, [1, 2, 2, 2, 2]),
        ("encoder", {"window": 2, "global_every": 0}, {}, [2, 3, 3, 3, 2]),
        ("decoder", {}, {"segments": torch.tensor([[0, 0, 0, 1, 1]])}, [1, 2, 3, 1, 2]),
    ],
    ids=["causal", "both-sides", "padding", "window", "window-both-sides", "documents"],
)
def test_without_queries_a_token_looks_evenly_at_all_that_it_may_see(kind, shape, inputs, counts):
    """q = 0 makes all scores equal, so each weight is 1 / number of visible keys."""
    model = make(kind, **shape)
    for module in [m for m in model.modules() if isinstance(m, layers.Attention)]:
        torch.nn.init.zeros_(module.q.weight)
        torch.nn.init.zeros_(module.q.bias)
    for P in attention_maps(model, some_tokens(1, 5), **inputs).values():
        for row, count in zip(P[0, 0], counts, strict=True):
            assert sorted(row.tolist())[-count:] == pytest.approx([1 / count] * count)
            assert int((row > 0).sum()) == count


def test_layers_and_heads_come_as_they_were_asked_for():
    model, tokens = make(num_heads=4), some_tokens(2, 5)
    everything = attention_maps(model, tokens)
    some = attention_maps(model, tokens, layers=[1, 0], heads=[3, 1])
    assert list(some) == [1, 0]
    for layer, P in some.items():
        assert torch.equal(P, everything[layer][:, [3, 1]])


def test_layers_that_were_not_chosen_cost_nothing(monkeypatch):
    shapes = []
    weigh = layers.attention_weights

    def spy(q: Tensor, k: Tensor, **masks: Any) -> Tensor:
        shapes.append(tuple(q.shape))
        return weigh(q, k, **masks)

    monkeypatch.setattr(layers, "attention_weights", spy)
    attention_maps(make(num_layers=3), some_tokens(2, 5), layers=[1])
    assert shapes == [(2, 5, 2, 16)]


def test_a_row_of_a_padded_batch_is_as_if_alone():
    model, tokens = make("encoder"), some_tokens(2, 7)
    padded = attention_maps(model, tokens, lengths=torch.tensor([7, 4]))
    alone = attention_maps(model, tokens[1:, :4])
    for layer, P in alone.items():
        torch.testing.assert_close(padded[layer][1:, :, :4, :4], P, rtol=1e-5, atol=1e-6)
        assert (padded[layer][1, :, :4, 4:] == 0).all()


def test_an_adapter_in_the_queries_shows_as_it_does_merged():
    model, tokens = make(), some_tokens(2, 5)
    before = attention_maps(model, tokens)
    attach(model, LoRAConfig(rank=3, targets=("q", "k")))
    stir(model)
    adapted = attention_maps(model, tokens)
    merge(model)
    merged = attention_maps(model, tokens)
    for layer in (0, 1):
        torch.testing.assert_close(adapted[layer], merged[layer], rtol=1e-4, atol=1e-5)
        assert (adapted[layer] - before[layer]).abs().max() > 0.05


def test_an_adapter_around_attention_leaves_the_first_layer_as_it_was():
    """Its norms begin as copies and its network as nearly nothing."""
    model, tokens = make(), some_tokens(2, 5)
    before = attention_maps(model, tokens, layers=[0])
    attach(model, HoulsbyConfig(width=3))
    torch.testing.assert_close(attention_maps(model, tokens, layers=[0]), before)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_model_changes(training):
    """Dropout is off while it is looked at, and afterwards mode, random state and outputs are as before."""
    model, tokens = make(dropout=0.3, attention_dropout=0.3).train(training), some_tokens(2, 5)
    before, state = model(tokens, seed=1), torch.get_rng_state()
    first, again = attention_maps(model, tokens), attention_maps(model, tokens)
    assert all(torch.equal(first[layer], again[layer]) for layer in first)
    assert model.training == training and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(tokens, seed=1), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not first[0].requires_grad


def test_nothing_is_left_in_the_model_after_a_failure():
    model = make().train()
    with pytest.raises(ValueError, match="do not fit"):
        attention_maps(model, some_tokens(1, 13))
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


def test_a_low_precision_model_gives_maps_in_its_dtype():
    model, tokens = make(), some_tokens(1, 5)
    exact = attention_maps(model, tokens, layers=[0])[0]
    model.compute_in(torch.bfloat16)
    P = attention_maps(model, tokens, layers=[0])[0]
    assert P.dtype == torch.bfloat16
    torch.testing.assert_close(P.float(), exact, rtol=0, atol=0.05)  # 8 bits of q, k and scores of several nats


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"layers": [0, 2]}, "layers are counted from 0 to 1 in this model, got 2"),
        ({"heads": [-1]}, "heads are counted from 0 to 1 in this model, got -1"),
        ({"heads": []}, "heads are counted from 0 to 1 in this model, got none"),
    ],
    ids=["layer", "negative", "none"],
)
def test_what_is_not_there_is_named(asked, words):
    with pytest.raises(InputError, match=words):
        attention_maps(make(), some_tokens(1, 3), **asked)


def test_a_pass_that_does_not_come_by_is_told(monkeypatch):
    """As of a compiled model: its code in memory has no place to look from."""
    model = make()
    monkeypatch.setattr(model, "forward", lambda tokens: tokens)
    with pytest.raises(ValueError, match="attention of layer 0 was not met"):
        attention_maps(model, some_tokens(1, 3))
