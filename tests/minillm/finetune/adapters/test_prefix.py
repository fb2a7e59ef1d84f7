"""A prefix is seen by every query and moves nothing else: not positions, padding, documents, windows or the cache."""

import pytest
import torch
from minillm_kernels.dispatch import backend
from torch import nn

from minillm.finetune.adapters.attach import adapter_tensors, attach, put_adapter_tensors, set_active
from minillm.finetune.adapters.config import PrefixConfig
from minillm.finetune.adapters.places import places
from minillm.finetune.adapters.prefix import flatten
from minillm.model.layers import Pass

CASES = {
    "encoder": ("encoder-pre", {}, {}),
    "decoder": ("decoder-pre", {}, {}),
    "padding-right": ("encoder-post", {}, {"key_stop": torch.tensor([7, 4, 1])}),
    "padding-left": ("decoder-pre", {}, {"key_start": torch.tensor([0, 3, 6])}),
    "padding-both": ("encoder-pre", {}, {"key_start": torch.tensor([0, 2, 3]), "key_stop": torch.tensor([7, 5, 4])}),
    "documents": (
        "decoder-pre",
        {},
        {"segments": torch.tensor([[0] * 7, [0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1]])},
    ),
    "window": ("decoder-pre", {"window": 2, "global_every": 0}, {}),
    "window-both-sides": ("encoder-pre", {"window": 2, "global_every": 0}, {"key_stop": torch.tensor([7, 4, 1])}),
    "window-documents": (
        "decoder-pre",
        {"window": 2, "global_every": 0},
        {"segments": torch.arange(7).expand(3, 7) // 4},
    ),
    "alibi": ("decoder-pre", {"position": "alibi"}, {"key_stop": torch.tensor([7, 4, 1])}),
    "alibi-left": ("encoder-pre", {"position": "alibi"}, {"key_start": torch.tensor([0, 3, 6])}),
    "rotary-grouped": ("llama", {}, {"key_stop": torch.tensor([7, 4, 1])}),
    "softcap": ("decoder-pre", {"attention_softcap": 2.0}, {}),
}


def by_hand(attention, prefixes, x, now, softcap):
    """Attention of a layer with its prefixes in float64, every mask written out."""
    B, T, D = *x.shape[:2], attention.head_width
    q, k, v = (layer(x).view(B, T, -1, D) for layer in (attention.q, attention.k, attention.v))
    if attention.q_norm is not None:
        q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.rotary is not None:
        q, k = attention.rotary(q, k, now.positions)
    source = attention.source.base
    q, k, v = q.double(), k.double(), v.double()
    i, j = torch.arange(T)[:, None], torch.arange(T)
    seen = torch.ones(B, 1, T, T, dtype=torch.bool)
    left, right = source.window
    seen &= (j <= i) if source.causal else torch.ones(T, T, dtype=torch.bool)
    seen &= torch.ones(T, T, dtype=torch.bool) if left is None else j - i >= -left
    seen &= torch.ones(T, T, dtype=torch.bool) if right is None else j - i <= right
    if now.key_start is not None:
        seen &= j >= now.key_start[:, None, None, None]
    if now.key_stop is not None:
        seen &= j < now.key_stop[:, None, None, None]
    if now.segments is not None:
        seen &= (now.segments[:, :, None] == now.segments[:, None, :])[:, None]
    groups = q.shape[2] // k.shape[2]
    for prefix in prefixes:
        first_k, first_v = prefix.keys_and_values().double()
        k = torch.cat((first_k.expand(B, -1, -1, -1), k), dim=1)
        v = torch.cat((first_v.expand(B, -1, -1, -1), v), dim=1)
    k, v = (z.repeat_interleave(groups, dim=2) for z in (k, v))
    P = k.shape[1] - T
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / D**0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if source.slopes is not None:
        scores[..., P:] -= source.slopes.double()[:, None, None] * (j - i).abs()
    scores[..., P:] = scores[..., P:].masked_fill(~seen, -torch.inf)
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v)
    return nn.functional.linear(y.flatten(2), attention.output.weight.double(), attention.output.bias.double())


@pytest.fixture(params=CASES.values(), ids=CASES)
def layer(request, stand_in, stir):
    """A layer's attention, its input, its pass, and its softcap; the adapter "a" is active."""
    kind, settings, masks = request.param
    model = stand_in(kind, num_layers=1, **settings)
    attach(model, PrefixConfig(length=3), name="a")
    stir(model)
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    return model, x, Pass(**masks)


def test_every_query_sees_the_prefix_and_what_it_saw_before(layer):
    """The truth is computed by hand in float64; queries at padding count too: they see the prefix alone."""
    model, x, now = layer
    attention = model.backbone.blocks[0].attention
    truth = by_hand(attention, attention.source.acting(), x, now, model.config.attention_softcap)
    torch.testing.assert_close(attention(x, now).double(), truth, rtol=1e-5, atol=1e-5)


def test_two_prefixes_stand_one_before_the_other(layer, stir):
    model, x, now = layer
    attach(model, PrefixConfig(length=2), name="b")
    stir(model, seed=1)
    set_active(model, "a", "b")
    attention = model.backbone.blocks[0].attention
    assert len(attention.source.acting()) == 2
    truth = by_hand(attention, attention.source.acting(), x, now, model.config.attention_softcap)
    torch.testing.assert_close(attention(x, now).double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "masks",
    [{"key_stop": torch.tensor([5, 2])}, {"key_start": torch.tensor([0, 3])}],
    ids=["padding-right", "padding-left"],
)
def test_the_kernels_agree(stand_in, stir, masks):
    """Forward and the gradient of the prefix, on the fused path (interpreted) and on PyTorch's."""
    model = stand_in("decoder-pre", num_layers=1, width=32, num_heads=2, window=3, global_every=0)
    attach(model, PrefixConfig(length=3))
    stir(model)
    attention, [prefix] = model.backbone.blocks[0].attention, adapter_tensors(model, "adapter").values()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    found = {}
    for name in ("torch", "fused"):
        with backend(name):
            y = attention(x, Pass(**masks))
            found[name] = (y, *torch.autograd.grad(y.square().sum(), prefix))
    for ours, truth in zip(found["fused"], found["torch"], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["decoder-pre", "llama"])
def test_positions_are_not_eaten(stand_in, kind, stir):
    """As many tokens as the context has fit, and learned positions are those without a prefix."""
    model = stand_in(kind)
    attach(model, PrefixConfig(length=5))
    stir(model)
    context = model.config.context
    tokens = torch.randint(19, (2, context), generator=torch.Generator().manual_seed(3))
    assert model(tokens).isfinite().all()
    with pytest.raises(ValueError, match="13 tokens do not fit the model's context of 12"):
        model(torch.zeros(1, context + 1, dtype=torch.int64))
    told = model.backbone(tokens, positions=torch.arange(context).expand(2, context))
    torch.testing.assert_close(model.backbone(tokens), told, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder-pre", "encoder-post", "decoder-pre", "llama"])
def test_padding_changes_nothing(stand_in, kind, stir):
    """A row alone, and in a batch with padding on the right or on the left."""
    model = stand_in(kind).backbone
    attach(model, PrefixConfig(length=3))
    stir(model)
    tokens = torch.randint(19, (1, 5), generator=torch.Generator().manual_seed(3))
    alone, filler = model(tokens), torch.zeros(1, 4, dtype=torch.int64)
    right = model(torch.cat((tokens, filler), dim=1), lengths=torch.tensor([5]))
    left = model(torch.cat((filler, tokens), dim=1), starts=torch.tensor([4]))
    torch.testing.assert_close(right[:, :5], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left[:, 4:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder-pre", "decoder-pre"])
def test_packed_documents_are_as_if_alone(stand_in, kind, stir):
    model = stand_in(kind).backbone
    attach(model, PrefixConfig(length=3))
    stir(model)
    first, second = (torch.randint(19, (1, n), generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    packed = model(
        torch.cat((first, second), dim=1),
        segments=torch.tensor([[0, 0, 0, 0, 1, 1, 1]]),
        positions=torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
    )
    torch.testing.assert_close(packed[:, :4], model(first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 4:], model(second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"window": 3, "global_every": 0}, {"position": "alibi"}], ids=["all", "window", "alibi"]
)
@pytest.mark.parametrize("starts", [None, torch.tensor([0, 2])], ids=["even", "padding-left"])
def test_with_a_cache_token_by_token_is_all_at_once(stand_in, stir, settings, starts):
    """The prefix is no part of the cache, whose room stays that of the text."""
    model = stand_in("llama", **settings).backbone
    attach(model, PrefixConfig(length=3))
    stir(model)
    tokens = torch.randint(19, (2, 7), generator=torch.Generator().manual_seed(3))
    whole = model(tokens, starts=starts)
    cache = model.new_cache(2, 7)
    parts = [model(tokens[:, a:b], starts=starts, cache=cache) for a, b in ((0, 4), (4, 5), (5, 7))]
    by_parts = torch.cat(parts, dim=1)
    real = torch.ones(2, 7, dtype=torch.bool) if starts is None else torch.arange(7) >= starts[:, None]
    torch.testing.assert_close(by_parts[real], whole[real], rtol=1e-5, atol=1e-5)


def test_the_network_can_go_when_training_is_over(stand_in, stir, batch):
    """The same outputs, and the tensors of an adapter that never had one; they fit such an adapter."""
    model, other = stand_in("llama"), stand_in("llama")
    attach(model, PrefixConfig(length=3, mlp_width=7))
    stir(model.backbone)
    before = model(**batch)
    flatten(model, "adapter")
    torch.testing.assert_close(model(**batch), before, rtol=1e-6, atol=1e-6)
    attach(other, PrefixConfig(length=3))
    put_adapter_tensors(other, "adapter", adapter_tensors(model, "adapter"), source="a test")
    assert torch.equal(other(**batch), model(**batch))
    configs = [place.adapters["adapter"].config for place in places(model).values()]
    assert configs == [PrefixConfig(length=3)] * 2 and all(
        p.requires_grad for p in adapter_tensors(model, "adapter").values()
    )


def test_the_network_makes_what_its_formula_says(stand_in, stir):
    model = stand_in("llama")
    attach(model, PrefixConfig(length=3, mlp_width=7))
    stir(model)
    network = model.backbone.blocks[0].attention.source.adapters["adapter"].network
    e, U, a, W, b = (
        t.double()
        for t in (
            network.rows.weight,
            network.inside.weight,
            network.inside.bias,
            network.outside.weight,
            network.outside.bias,
        )
    )
    table = torch.tanh(e @ U.T + a) @ W.T + b  # (P, L 2 Hkv D)
    for layer, flat in enumerate(table.chunk(2, dim=1)):
        made = model.backbone.blocks[layer].attention.source.adapters["adapter"].keys_and_values()
        keys, values = flat.chunk(2, dim=1)
        truth = torch.stack((keys.view(3, 2, 4), values.view(3, 2, 4)))
        torch.testing.assert_close(made.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mlp_width", [None, 100], ids=["plain", "network"])
def test_a_prefix_begins_small(stand_in, mlp_width):
    """Matrices from N(0, 0.02^2) and biases at 0."""
    model = stand_in("llama", width=64)
    torch.manual_seed(0)
    attach(model, PrefixConfig(length=90, mlp_width=mlp_width))
    for name, drawn in adapter_tensors(model, "adapter").items():
        assert drawn.eq(0).all() if name.endswith("bias") else drawn.std().item() == pytest.approx(0.02, rel=0.05)
