"""Each filter keeps the set that its definition names, and rows are drawn independently of each other."""

import itertools

import pytest
import torch

from minillm.errors import InputError
from minillm.sampling import (
    SamplingConfig,
    choose,
    draw,
    filtered,
    min_p,
    penalise_repetition,
    row_generators,
    top_k,
    top_p,
)

SHAPES = [pytest.param(1, 1, id="one"), pytest.param(3, 7, id="ragged"), pytest.param(4, 64, id="wide")]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])


def logits_of(B: int, V: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return logits without ties within a row, also in bfloat16."""
    generator = torch.Generator().manual_seed(B * 1000 + V)
    steps = torch.stack([torch.randperm(V, generator=generator) for _ in range(B)])
    return ((steps - V / 3) / 8).to(dtype)


def kept(logits: torch.Tensor) -> list[set[int]]:
    """Return, per row, the tokens that may still be drawn."""
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


@DTYPES
@pytest.mark.parametrize("k", [1, 3, 1000])
@pytest.mark.parametrize("B, V", SHAPES)
def test_top_k_keeps_the_k_highest(B, V, k, dtype):
    """The set is that of a plain sort, and what is kept is unchanged."""
    logits = logits_of(B, V, dtype)
    out = top_k(logits, k)
    assert kept(out) == [set(sorted(range(V), key=lambda v: -row[v])[:k]) for row in logits.tolist()]
    assert torch.equal(out[out.isfinite()], logits[out.isfinite()])


def test_top_k_keeps_all_that_tie_with_the_kth():
    """No token is dropped while an equal one stays."""
    assert kept(top_k(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 2)) == [{0, 1, 2}]


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("V", [1, 2, 7])
def test_top_p_keeps_the_smallest_set_with_enough_mass(V, p):
    """No smaller set of tokens holds p, found by trying all sets."""
    logits = logits_of(1, V, torch.float64)
    mass = logits.softmax(-1)[0].tolist()
    (found,) = kept(top_p(logits, p))
    sets = [s for n in range(V + 1) for s in itertools.combinations(range(V), n) if sum(mass[v] for v in s) >= p]
    assert len(found) == min(len(s) for s in sets)
    assert sum(mass[v] for v in found) == pytest.approx(
        max(sum(mass[v] for v in s) for s in sets if len(s) == len(found))
    )


def test_top_p_keeps_no_more_where_the_mass_is_reached_exactly():
    """Four tokens of a quarter each: two hold a half."""
    assert kept(top_p(torch.zeros(1, 4), 0.5)) == [{0, 1}]


@DTYPES
@pytest.mark.parametrize("B, V", SHAPES)
def test_the_extremes_of_top_p_keep_one_token_and_all(B, V, dtype):
    """1e-300 is 0 in float32, and a sum of many shares in float32 reaches 1 before its last one."""
    logits = logits_of(B, V, dtype)
    assert kept(top_p(logits, 1e-300)) == [{int(row.argmax())} for row in logits]
    assert kept(top_p(logits, 1.0)) == [set(range(V))] * B
    flat = 5 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    assert kept(top_p(flat, 1.0)) == [set(range(50_000))]


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("B, V", SHAPES)
def test_min_p_keeps_a_share_of_the_likeliest(B, V, p):
    """A token stays when its probability is at least p times the highest one."""
    logits = logits_of(B, V, torch.float64)
    share = logits.softmax(-1)
    expected = share >= p * share.max(-1, keepdim=True).values * (1 - 1e-12)  # the likeliest itself stays at p = 1
    assert kept(min_p(logits, p)) == [set(row.nonzero()[:, 0].tolist()) for row in expected]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty_is_that_of_the_paper(penalty):
    """Seen tokens move by the penalty, down for a penalty above 1 whatever their sign; others do not move."""
    logits = logits_of(3, 7, torch.float64)
    seen = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    out = penalise_repetition(logits, seen, penalty)
    for value, was_seen, new in zip(logits.flatten(), seen.flatten(), out.flatten(), strict=True):
        factor = 1.0 if not was_seen else 1 / penalty if value > 0 else penalty
        assert new == pytest.approx(float(value) * factor)


def test_filters_follow_the_stated_order():
    """Temperature comes before top-p: a hot distribution keeps more tokens."""
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    seen = torch.zeros(1, 3, dtype=torch.bool)
    assert kept(filtered(logits, seen, SamplingConfig(temperature=1.0, top_p=0.69))) == [{0}]
    assert kept(filtered(logits, seen, SamplingConfig(temperature=3.0, top_p=0.69))) == [{0, 1}]
    # top-k before top-p: of the two that top-k leaves, the first alone holds 0.7 / 0.9 of the mass
    assert kept(filtered(logits, seen, SamplingConfig(temperature=1.0, top_k=2, top_p=0.75))) == [{0}]


def test_all_filters_together_are_those_of_transformers():
    """In its order, in which it applies them too; each of the five changes what is left here."""
    from transformers.generation import logits_process

    settings = {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.15, "repetition_penalty": 1.4}
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, 50, generator=generator, dtype=torch.float64)
    tokens = torch.randint(50, (16, 9), generator=generator)
    seen = torch.zeros(16, 50, dtype=torch.bool).scatter_(1, tokens, True)
    theirs = logits
    for name, value in (
        ("RepetitionPenaltyLogitsProcessor", settings["repetition_penalty"]),
        ("TemperatureLogitsWarper", settings["temperature"]),
        ("TopKLogitsWarper", settings["top_k"]),
        ("TopPLogitsWarper", settings["top_p"]),
        ("MinPLogitsWarper", settings["min_p"]),
    ):
        theirs = getattr(logits_process, name)(value)(tokens, theirs)
    ours = filtered(logits, seen, SamplingConfig(**settings))
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=0)
    for name in settings:
        others = {key: value for key, value in settings.items() if key != name}
        without = filtered(logits, seen, SamplingConfig(**{"temperature": 1.0} | others))
        assert not torch.equal(without.softmax(-1), ours.softmax(-1)), name


@DTYPES
def test_temperature_zero_is_greedy(dtype):
    """Whatever the filters and the seed, the highest logit wins; the limit of small temperatures agrees."""
    logits = logits_of(4, 64, dtype)
    seen = torch.zeros(4, 64, dtype=torch.bool)
    expected = logits.argmax(-1)
    for config in (SamplingConfig(temperature=0.0, top_p=0.1), SamplingConfig(temperature=1e-3)):
        assert torch.equal(choose(logits, seen, config, row_generators(3, list("abcd"))), expected)


def test_draws_follow_the_distribution():
    """Over an even grid of uniforms each token comes up as often as its probability says, to within one point."""
    share = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    n = 10_000
    uniforms = (torch.arange(n).double() + 0.5) / n
    drawn = draw(share.log().expand(n, 5), uniforms)
    assert ((drawn.bincount(minlength=5) - n * share).abs() <= 1).all()


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53], ids=["lowest", "middle", "highest"])
def test_a_dropped_token_is_never_drawn(u):
    """At both ends of the unit interval a token of probability 0 stays out, at the edges of the vocabulary too."""
    for allowed in ([2], [0], [4], [1, 3]):
        logits = torch.full((1, 5), -torch.inf)
        logits[0, allowed] = 0.3
        assert int(draw(logits, torch.tensor([u], dtype=torch.float64))) in allowed


def test_a_row_is_drawn_alike_alone_and_in_a_batch():
    """Neither other rows nor the place in the batch matter; a repeated prompt gets numbers of its own."""
    alone = torch.rand(5, generator=row_generators(7, ["b"])[0])
    batch = [torch.rand(5, generator=g) for g in row_generators(7, ["a", "b", "b"])]
    assert torch.equal(batch[1], alone)
    assert not torch.equal(batch[2], alone)
    assert not torch.equal(batch[0], alone)
    assert not torch.equal(torch.rand(5, generator=row_generators(8, ["b"])[0]), alone)


@pytest.mark.parametrize(
    "values, message",
    [
        pytest.param({"temperature": -1.0}, r"temperature must be 0 or in \[0.001, 1000\], got -1.0", id="temperature"),
        pytest.param({"temperature": 1e-40}, "temperature", id="overflow"),
        pytest.param({"temperature": 1e300}, "temperature", id="hot"),
        pytest.param({"temperature": float("nan")}, "temperature", id="nan"),
        pytest.param({"top_k": 0}, "top_k must be at least 1, got 0", id="top-k"),
        pytest.param({"top_p": 0.0}, "top_p must be in", id="top-p"),
        pytest.param({"min_p": 1.5}, "min_p must be in", id="min-p"),
        pytest.param({"repetition_penalty": 0.0}, "repetition_penalty must be in", id="penalty"),
        pytest.param({"repetition_penalty": 1e-300}, "repetition_penalty must be in", id="small penalty"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    """Each setting names its range and how to switch it off."""
    with pytest.raises(InputError, match=message):
        SamplingConfig(**values)
