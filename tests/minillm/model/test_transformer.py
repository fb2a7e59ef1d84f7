"""Each choice trains, in each dtype; dropout is where it should be; mistakes say what to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import minillm_kernels
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minillm.data.batch import Batch
from minillm.model import layers, transformer
from minillm.model.config import ModelConfig
from minillm.model.layers import Norm, alibi_slopes
from minillm.model.transformer import Decoder, Encoder, build_model

SHAPE: dict[str, Any] = {"vocab_size": 19, "context": 12, "num_layers": 2, "width": 16, "num_heads": 4}
LLAMA: dict[str, Any] = {
    "position": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "num_kv_heads": 2,
    "bias": False,
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "kind": ("decoder", "encoder"),
    "position": ("learned", "sinusoidal", "rotary", "alibi", "none"),
    "activation": ("relu", "gelu", "gelu_tanh", "relu2", "swiglu", "geglu"),
    "norm": ("layer_norm", "rms_norm"),
    "norm_position": ("pre", "post"),
    "num_kv_heads": (None, 2, 1),
    "head_width": (None, 6),
    "bias": (True, False),
    "qk_norm": (False, True),
    "tied_embeddings": (True, False),
    "token_types": (0, 2),
    "embedding_norm": (False, True),
    "head": ("linear", "transform", "none"),
    "head_bias": (False, True),
    "pooler": (False, True),
    "dropout": (0.0, 0.1),
    "attention_dropout": (0.0, 0.1),
    "window": (None, 3),
    "global_every": (1, 2, 0),
    "attention_softcap": (None, 4.0),
    "logit_softcap": (None, 6.0),
}


def allowed(choices: dict[str, Any]) -> bool:
    bias_of_no_head = choices.get("head") == "none" and choices.get("head_bias")
    window_of_no_layer = choices.get("window") and choices.get("global_every") == 1
    return not (bias_of_no_head or window_of_no_layer)


def every_pair() -> Iterator[dict[str, Any]]:
    """Configurations in which any two values of two options meet at least once; each takes many of those left."""
    names = list(OPTIONS)
    left = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b])
        if allowed({a: x, b: y})
    }
    while left:
        choices = dict(min(left, key=lambda pair: sorted(map(repr, pair))))
        for name in names:
            if name not in choices:
                fitting = [value for value in OPTIONS[name] if allowed(choices | {name: value})]
                choices[name] = max(
                    fitting,
                    key=lambda value: sum(frozenset(((name, value), other)) in left for other in choices.items()),
                )
        left -= {frozenset(pair) for pair in itertools.combinations(choices.items(), 2)}
        yield choices


PAIRS = list(every_pair())


def make(**choices: Any) -> Encoder | Decoder:
    torch.manual_seed(0)
    return build_model(ModelConfig(**(SHAPE | choices)))


@pytest.mark.parametrize("choices", PAIRS, ids=range(len(PAIRS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_gradient_reaches_every_parameter_of_every_choice(choices: dict[str, Any], dtype: torch.dtype) -> None:
    model = make(**choices).train()
    model.compute_in(dtype)
    tokens, types = torch.randint(19, (3, 12)), torch.randint(2, (3, 12))
    hidden = model(tokens, token_types=types if model.config.token_types else None, seed=3)
    out = hidden if choices["head"] == "none" else model.project(hidden)
    assert hidden.dtype == out.dtype == dtype
    # A sum of hidden states has no gradient through a norm; random weights make every direction count.
    loss = (out.float() * torch.randn(out.shape)).sum()
    if choices["pooler"]:
        loss = loss + (model.pooled(hidden).float() * torch.randn(3, 16)).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        gradient = parameter.grad
        assert gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all(), name
        # A bias on all keys moves all scores of a query alike, which softmax does not see: its gradient may be 0.
        assert name.endswith("attention.k.bias") or (gradient != 0).any(), name


def test_every_pair_of_choices_meets() -> None:
    assert 30 <= len(PAIRS) <= 80
    for (a, xs), (b, ys) in itertools.combinations(OPTIONS.items(), 2):
        for x, y in itertools.product(xs, ys):
            if allowed({a: x, b: y}):
                assert any(choices[a] == x and choices[b] == y for choices in PAIRS), f"{a}={x} {b}={y}"


@pytest.mark.parametrize("choices", [{}, LLAMA], ids=["gpt2", "llama"])
@torch.no_grad()
def test_bfloat16_is_as_close_as_its_eight_bits(choices: dict[str, Any]) -> None:
    model = make(**choices).eval()
    tokens = torch.randint(19, (3, 12))
    truth = model.logits(tokens)
    model.compute_in(torch.bfloat16)
    # Two layers of half a dozen roundings to 2^-9 each, relative to the largest value.
    assert (model.logits(tokens) - truth).abs().max() < 12 * 2**-9 * truth.abs().max()


# --- dropout -------------------------------------------------------------------------------------------------------

DROPPED = [
    pytest.param({"dropout": 0.2}, id="dropout"),
    pytest.param({"attention_dropout": 0.2}, id="attention"),
    pytest.param({"dropout": 0.2, "attention_dropout": 0.2, "norm_position": "post"}, id="both-post-norm"),
]


@pytest.mark.parametrize("choices", DROPPED)
@torch.no_grad()
def test_the_seed_decides_what_is_dropped(choices: dict[str, Any]) -> None:
    model, tokens = make(**choices).train(), torch.randint(19, (2, 12))
    first = model(tokens, seed=5)
    torch.manual_seed(77)  # PyTorch's own generator has no say
    assert torch.equal(first, model(tokens, seed=5))
    assert torch.equal(first, model(tokens, seed=torch.tensor(5)))
    assert not torch.equal(first, model(tokens, seed=6))
    state = torch.get_rng_state()
    model(tokens, seed=2**63 - 1)
    model(tokens, seed=-(2**63))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("choices", DROPPED)
@torch.no_grad()
def test_without_a_seed_pytorchs_generator_decides(choices: dict[str, Any]) -> None:
    model, tokens = make(**choices).train(), torch.randint(19, (2, 12))
    torch.manual_seed(7)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(7)
    assert torch.equal(first, model(tokens))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("choices", DROPPED)
@torch.no_grad()
def test_a_model_in_use_drops_nothing(choices: dict[str, Any]) -> None:
    model, tokens = make(**choices).eval(), torch.randint(19, (2, 12))
    same = make(**{name: value for name, value in choices.items() if "dropout" not in name}).train()
    assert torch.equal(model(tokens, seed=5), model(tokens, seed=6))
    assert torch.equal(model(tokens, seed=5), same(tokens, seed=5))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@torch.no_grad()
def test_each_place_drops_a_pattern_of_its_own(norm_position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    add = Norm.add

    def watched_add(norm: Norm, x: Tensor, update: Tensor | None, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
        if update is not None:
            seeds.append(int(seed))
        return add(norm, x, update, p, seed)

    def watched_attention(*inputs: Tensor, seed: Tensor, **choices: Any) -> Tensor:
        seeds.append(int(seed))
        return minillm_kernels.attention(*inputs, seed=seed, **choices)

    def watched_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
        seeds.append(int(seed))
        return minillm_kernels.dropout(x, p, seed)

    monkeypatch.setattr(Norm, "add", watched_add)
    monkeypatch.setattr(layers, "attention", watched_attention)
    monkeypatch.setattr(transformer, "dropout", watched_dropout)
    model = make(dropout=0.1, attention_dropout=0.1, num_layers=5, norm_position=norm_position).train()
    model(torch.randint(19, (1, 4)), seed=0)
    assert len(seeds) == len(set(seeds)) == 1 + 3 * 5  # the embedding, and three places in each layer


@torch.no_grad()
def test_what_is_left_is_scaled_up() -> None:
    """Over many seeds, the mean of what enters the first block is the embedding itself."""
    p, rows = 0.25, 4000
    model = make(dropout=p, num_layers=1, position="none").train()
    taken: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    model(torch.full((rows, 1), 3), seed=1)
    embedding = model.embeddings.tokens.weight[3]
    share = (taken[0] == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / (rows * 16)) ** 0.5  # five standard errors
    kept = taken[0][taken[0] != 0]
    assert torch.allclose(kept, (embedding / (1 - p)).expand(rows, 1, 16)[taken[0] != 0])


# --- the rest ------------------------------------------------------------------------------------------------------


# PyTorch's tracer makes an instance of autograd.Function, against which PyTorch itself warns.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "choices",
    [
        pytest.param({"dropout": 0.1, "attention_dropout": 0.1, "num_layers": 1}, id="gpt2-dropout"),
        pytest.param(LLAMA | {"qk_norm": True, "num_layers": 1}, id="llama"),
        pytest.param(
            {"kind": "encoder", "position": "alibi", "activation": "geglu", "window": 4, "global_every": 2}
            | {"attention_softcap": 5.0, "norm_position": "post"},
            id="encoder-windows-alibi-softcap",
        ),
    ],
)
def test_the_model_is_one_graph_for_the_compiler(choices: dict[str, Any]) -> None:
    model, tokens = make(**choices).train(), torch.randint(19, (2, 12))
    lengths, seed = torch.tensor([12, 7]), torch.tensor(4)
    plain = model(tokens, lengths=lengths, seed=seed)
    plain.sum().backward()
    gradient = model.embeddings.tokens.weight.grad
    model.zero_grad()
    model.compile(backend="eager", fullgraph=True)
    traced = model(tokens, lengths=lengths, seed=seed)
    traced.sum().backward()
    assert torch.equal(traced, plain)
    assert gradient is not None and model.embeddings.tokens.weight.grad is not None
    assert torch.equal(model.embeddings.tokens.weight.grad, gradient)


def test_one_graph_serves_every_batch() -> None:
    """The seed of the dropout differs from batch to batch, and no number of it is compiled in."""
    graphs: list[Any] = []
    model = make(dropout=0.1, num_layers=1).train()
    plain = [model(**_inputs(seed)) for seed in (5, 2**62, -3)]
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    for seed, expected in zip((5, 2**62, -3), plain, strict=True):
        assert torch.equal(model(**_inputs(seed)), expected)
    assert len(graphs) == 1 and not torch.equal(plain[0], plain[1])


def _inputs(seed: int) -> dict[str, Any]:
    tokens = torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, **Batch(tokens=tokens, seed=seed).model_inputs()}


@torch.no_grad()
def test_logits_are_head_weight_bias_and_cap() -> None:
    model = make(head="transform", head_bias=True, logit_softcap=2.0, tied_embeddings=False).double().eval()
    model.compute_in(torch.float64)
    tokens = torch.randint(19, (2, 5))
    assert model.output_bias is not None
    model.output_bias.normal_()
    model.output_weight.normal_()
    raw = F.linear(model.head(model(tokens)), model.output_weight, model.output_bias)
    assert (model.logits(tokens) - 2 * torch.tanh(raw / 2)).abs().max() < 1e-12
    assert model.logits(tokens).abs().max() < 2 < raw.abs().max()


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (1, [2**-8]),
        (8, [2**-i for i in range(1, 9)]),  # the paper's example
        (12, [2**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),  # of BLOOM's code
    ],
)
def test_alibi_slopes_are_the_published_ones(heads: int, slopes: list[float]) -> None:
    assert torch.allclose(alibi_slopes(heads), torch.tensor(slopes))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi", "none"])
@torch.no_grad()
def test_padding_makes_no_room_beyond_the_context(position: str) -> None:
    """Whatever tells the model where a token stands; given positions there may be more columns than the context."""
    model, tokens = make(position=position), torch.randint(19, (2, 13))
    starts = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="13 tokens do not fit the model's context of 12; shorten them"):
        model(tokens, starts=starts)
    positions = (torch.arange(13) - 1).clamp(min=0).expand(2, 13)
    assert model(tokens, starts=torch.tensor([1, 1]), positions=positions).shape == (2, 13, 16)


def test_mistakes_say_what_to_do() -> None:
    model, none = make(), make(kind="encoder", head="none")
    row = torch.zeros(1, 13, dtype=torch.int64)
    with pytest.raises(ValueError, match="13 tokens do not fit the model's context of 12; shorten them"):
        model(row)
    with pytest.raises(ValueError, match=r"tokens must be \(B, T\), got \(3,\); add a batch axis"):
        model(row[0, :3])
    with pytest.raises(ValueError, match="built without a head; set model.head"):
        none.logits(row[:, :3])
    with pytest.raises(ValueError, match="no pooler; set model.pooler"):
        none.pooled(none(row[:, :3]))


def test_saved_weights_are_the_parameters_alone() -> None:
    model = make(position="rotary")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
