"""Recipes: contenders train the same model on the same batches, which are those of a run, and with the same loss."""

import math
from types import SimpleNamespace

import minillm_kernels as mk
import pytest
import torch
from small_recipes import ALL, CPU, OURS, PEER, small
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import peers, registration, stepper
from benchmarks.training.build import STEPS, make_loader, make_model, make_objective, make_trainer, task_of
from benchmarks.training.peers import PeerObjective, build_peer
from benchmarks.training.recipes import LADDER, recipes
from minillm.config import build, read_toml
from minillm.data.batch import IGNORED
from minillm.model.count import count_parameters, flops_per_token
from minillm.model.transformer import build_model
from minillm.pretrain_config import PretrainConfig


@pytest.mark.parametrize("name", ALL)
def test_every_contender_has_the_parameters_of_the_peer(name):
    """At the recipe's own sizes, on no memory; the recipe as its file has it is another model."""
    recipe = ALL[name]
    with torch.device("meta"):
        ours, peer = make_model(recipe, OURS), make_model(recipe, PEER)
    assert count_parameters(ours) == count_parameters(peer) == task_of(recipe, PEER)["parameters_of_ours"]


def test_presets_have_their_published_sizes():
    counts = {name: task_of(ALL[name], PEER)["parameters_of_ours"] for name in ("gpt2-124m", "bert-base")}
    assert counts == {"gpt2-124m": 124_439_808, "bert-base": 109_514_298}  # transformers' models without a pooler


@pytest.mark.parametrize(
    "name", ["gpt2-124m", "bert-base", "llama-125m", "shakespeare-char", "mlm-small", "classifier"]
)
def test_flops_of_a_step_are_those_that_torch_counts(name):
    """MFU's formula, (6 N + 12 L C T) a token with the tied head once, on a step of the maths by hand.

    Of masked LM's targets only those that are hidden enter the head, one at least in each row: as many as `rate` says
    where that gives whole numbers.
    """
    recipe = small(name)
    if name in ("bert-base", "mlm-small"):
        recipe.plain["objective"] |= {"rate": 0.25}  # 6 of 24 tokens
    trainer = make_trainer(recipe, OURS, CPU)
    counter = FlopCounterMode(display=False)
    with mk.backend("reference"), counter:
        trainer.take_step()
    assert counter.get_total_flops() == task_of(recipe, OURS)["flops"]


def test_flops_are_those_of_the_peer_too():
    recipe = small("gpt2-124m")
    config = recipe.config(PEER).model
    peer = build_peer(recipe.peer, config)
    peer.inner.set_attn_implementation("eager")  # single products, which the counter knows
    tokens = torch.randint(config.vocab_size, (2, config.context))
    counter = FlopCounterMode(display=False)
    with counter:
        peer(tokens, tokens).backward()
    with torch.device("meta"):
        model = build_model(config)
    assert counter.get_total_flops() == flops_per_token(model, config.context) * tokens.numel()


def test_a_classifier_and_its_peer_take_the_loss_of_the_same_labels():
    """A new head is small, so both begin near log 2; the peer's is what its own logits say."""
    ours, peer = (make_trainer(small("classifier"), c, CPU) for c in (OURS, PEER))
    batches = [t.objective.prepare(t.loader.batch(3)) for t in (ours, peer)]
    assert torch.equal(batches[0].tokens, batches[1].tokens) and torch.equal(batches[0].targets, batches[1].targets)
    truth = torch.nn.functional.cross_entropy(peer.model.inner(input_ids=batches[1].tokens).logits, batches[1].targets)
    loss = peer.objective.step(peer.model, batches[1])
    torch.testing.assert_close(loss.total / loss.count, truth)
    losses = [float(t.take_step()[0]) for t in (ours, peer)]
    assert losses == pytest.approx([math.log(2)] * 2, rel=task_of(small("classifier"), OURS)["loss_margin"])


@pytest.mark.parametrize("name", ["gpt2-124m", "bert-base", "llama-125m"])
def test_peer_takes_the_same_batches_and_the_loss_of_the_same_targets(name):
    recipe = small(name)
    ours, peer = (make_trainer(recipe, c, CPU) for c in (OURS, PEER))
    batches = [t.objective.prepare(t.loader.batch(3)) for t in (ours, peer)]
    assert torch.equal(batches[0].tokens, batches[1].tokens) and torch.equal(batches[0].targets, batches[1].targets)
    (batch, _) = batches
    logits = peer.model.inner(input_ids=batch.tokens).logits
    truth = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    loss = peer.objective.step(peer.model, batch)
    torch.testing.assert_close(loss.total / loss.count, truth)
    assert type(ours.optimiser) is type(peer.optimiser) and ours.optimiser.defaults == peer.optimiser.defaults
    decays = [[g["weight_decay"] for g in t.optimiser.param_groups] for t in (ours, peer)]
    assert decays[0] == decays[1]


def test_peer_computes_under_autocast_with_sdpa_and_is_compiled_whole(monkeypatch):
    recipe = small("gpt2-124m")
    seen = []
    peer = build_peer(recipe.peer, recipe.config(PEER).model)
    monkeypatch.setattr(peer.inner, "compile", lambda: seen.append("compiled"))
    peer.inner.transformer.h[0].mlp.c_fc.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    peer.compute_in(torch.bfloat16)
    peer.compile()
    tokens = torch.randint(37, (1, 24))
    peer(tokens, tokens)
    assert seen == ["compiled", torch.bfloat16]
    assert peer.inner.config._attn_implementation == "sdpa"


def test_peer_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    recipe, lines = small("gpt2-124m"), []
    stepper.obey(lambda: stepper.Stepper(make_trainer(recipe, PEER, CPU), CPU), [], lines.append, {})
    assert lines == [{"failed": "NotInstalled: transformers is not installed"}]


@pytest.mark.parametrize("name", ["shakespeare-char-small", "shakespeare-char", "mlm-small"])
def test_recipe_as_filed_is_what_pretrain_would_run(name):
    """But for the vocabulary, which is a tokenizer's to say."""
    table = read_toml(registration.RECIPES / f"{name}.toml")
    recipe = ALL[name]
    table["model"]["vocab_size"] = recipe.plain["model"]["vocab_size"]
    (filed,) = (c for c in recipe.contenders if c.as_filed)
    asked = build(PretrainConfig, table, source=name)
    found = recipe.config(filed)
    assert (found.model, found.data, found.objective, found.optim) == (
        asked.model,
        asked.data,
        asked.objective,
        asked.optim,
    )
    assert found.train.micro_batches == asked.train.micro_batches
    plain = recipe.config(recipe.contenders[0])
    sizes = [(c.context, c.num_layers, c.width, c.num_heads) for c in (plain.model, asked.model)]
    assert sizes[0] == sizes[1]


def test_batches_are_random_and_not_the_same_twice():
    config = small("mlm-small").config(OURS)
    loader = make_loader(config)
    tokens = torch.stack([loader.batch(step).tokens for step in range(STEPS // 2)])  # within an epoch
    rows = tokens.flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows)
    counts = torch.bincount(tokens.flatten(), minlength=37).float()
    assert counts[:5].sum() == 0  # control symbols are no text
    assert (counts[5:] / counts[5:].mean() - 1).abs().max() < 0.2


def test_by_hand_holds_for_named_ops_alone_and_rungs_only_gain():
    hands = [set(rung.by_hand) for rung in LADDER]
    assert hands[0] == set(mk.dispatch.OPS) and hands[-1] == set()
    assert all(after < before for before, after in zip(hands, hands[1:-1], strict=False))
    assert [r.compiled for r in LADDER] == [False] * 5 + [True]
    assert hands[0] - hands[1] == {"rms_norm", "layer_norm"}
    assert hands[1] - hands[2] == {"cross_entropy", "linear_cross_entropy"}
    assert hands[2] - hands[3] == {"attention"}


def test_a_large_gpu_takes_a_step_at_once_but_for_who_holds_all_scores(monkeypatch):
    recipe = recipes()["gpt2-124m"]
    large = SimpleNamespace(total_memory=141e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: large)
    rows = {c.name: recipe.config(c).train.micro_batch_size for c in (*recipe.contenders, *recipe.ladder)}
    by_hand = {"naive", "+ norm", "+ loss"}
    assert {name for name, number in rows.items() if number == 16} == by_hand
    assert {number for name, number in rows.items() if name not in by_hand} == {64}
    large.total_memory = 80e9  # one contender would fit, but not two
    assert recipe.config(recipe.contenders[0]).train.micro_batch_size == 16


def test_objective_of_whole_words_has_words():
    recipe = small("mlm-small")
    recipe.plain["objective"] |= {"masking": "whole_word"}
    config = recipe.config(OURS)
    batch = make_objective(config).prepare(make_loader(config).batch(0))
    assert (batch.targets != IGNORED).sum() == 4 * round(0.15 * 24)


def test_peer_objective_prepares_as_ours_does():
    config = small("mlm-small").config(OURS)
    batch = make_loader(config).batch(0)
    ours, peer = make_objective(config).prepare(batch), PeerObjective(make_objective(config)).prepare(batch)
    assert torch.equal(ours.tokens, peer.tokens) and torch.equal(ours.targets, peer.targets)
