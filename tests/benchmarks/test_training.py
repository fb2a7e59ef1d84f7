"""Recipes: contenders train the same model on the same batches by the trainer's own step, and what cheats is found."""

import contextlib
import dataclasses
import json
import math
import time
from types import SimpleNamespace

import minillm_kernels as mk
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import figures
from benchmarks.context import Context
from benchmarks.training import peers, registration, section, stepper
from benchmarks.training.build import STEPS, make_loader, make_model, make_objective, make_trainer, task_of
from benchmarks.training.peers import PeerObjective, build_peer
from benchmarks.training.recipes import LADDER, recipes
from benchmarks.training.registration import Contender, Recipe
from minillm.config import build, read_toml
from minillm.data.batch import IGNORED
from minillm.model.count import count_parameters, flops_per_token
from minillm.model.transformer import build_model
from minillm.pretrain_config import PretrainConfig
from minillm.training.trainer import Trainer

CPU = torch.device("cpu")
ALL = recipes()
OURS = Contender(name="minillm", dtype="float32")
PEER = Contender(name="transformers", peer=True, dtype="float32")
SMALL = {"context": 24, "num_layers": 2, "width": 16, "num_heads": 2, "vocab_size": 37}


def small(name: str) -> Recipe:
    """Return a recipe with the architecture of one of those that there are, at sizes of a test, without dropout."""
    plain = {section: dict(values) for section, values in ALL[name].plain.items()}
    plain["model"] |= SMALL | {"dropout": 0.0, "attention_dropout": 0.0}
    if "num_kv_heads" in plain["model"]:
        plain["model"] |= {"num_kv_heads": 1, "mlp_width": 48}
    plain["train"] = {"batch_size": 4} if ALL[name].labels else {"batch_size": 4, "micro_batch_size": 2}
    return dataclasses.replace(ALL[name], kind="cpu", plain=plain, filed=plain, contenders=(OURS, PEER), ladder=())


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


def made(contender=OURS, name="shakespeare-char-small", **more) -> stepper.Stepper:
    return stepper.Stepper(make_trainer(small(name), contender, CPU), CPU, **more)


def orders(*given):
    return [json.dumps(order) for order in given]


@pytest.mark.parametrize("contender", [OURS, PEER], ids=lambda c: c.name)
def test_stepper_builds_warms_up_and_takes_its_turns(contender):
    lines = []
    about = task_of(small("shakespeare-char-small"), contender)
    stepper.obey(
        lambda: made(contender, count_work=True), orders({"warm": True}, {"seconds": 0.02}), lines.append, about
    )
    built, warm, turn = (next(iter(line.values())) for line in lines)
    assert built["parameters"] == built["parameters_of_ours"] and built["dtype"] == "fp32"
    assert warm["loss"] == pytest.approx(math.log(37), rel=0.05) and warm["norm"] > 0
    assert warm["work"]["flops"] > 0.5 * built["flops"] and warm["work"]["bytes"] > 0
    assert turn["seconds"] > 0 and turn["steps"] >= 1


def test_a_profile_says_what_a_step_goes_to():
    """On a CPU by op: a planted product is in it, as often as it is called, and no other step's."""
    timed = made()
    timed.warm_up()
    a = torch.randn(300, 300)
    timed.trainer.after_step.append(lambda trainer: [torch.linalg.matrix_exp(a) for _ in range(3)])
    lines = []
    stepper.obey(lambda: timed, orders({"profile": True}), lines.append, {})
    kernels = lines[-1]["profile"]["kernels"]
    assert {name: calls for name, calls, _ in kernels}["aten::linalg_matrix_exp"] == 3
    seconds = [taken for *_, taken in kernels]
    assert seconds == sorted(seconds, reverse=True) and min(seconds) >= 0


def test_on_a_gpu_a_profile_is_of_one_of_several_steps_and_says_how_long_nothing_ran(monkeypatch):
    """The profiler's part is played: two kernels a step, the second a millisecond after the first."""
    span = lambda start, stop: SimpleNamespace(start=start, end=stop, elapsed_us=lambda: stop - start)  # noqa: E731
    steps = stepper.PROFILED_STEPS["cuda"]
    events = [
        SimpleNamespace(name=name, device_type="DeviceType.CUDA", time_range=span(8000 * step + at, 8000 * step + end))
        for step in range(steps)
        for name, at, end in (("first", 0, 2000), ("second", 3000, 8000), ("Optimizer.step#AdamW.step", 0, 8000))
    ]
    played = contextlib.nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda **given: played)
    timed, taken = made(), []
    timed.device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(timed, "_steps", taken.append)
    monkeypatch.setattr(timed, "_give_back", lambda: None)
    told = timed.profile()
    assert taken == [1, steps]
    assert [[name, calls] for name, calls, _ in told["kernels"]] == [["second", 1], ["first", 1]]
    assert [seconds for *_, seconds in told["kernels"]] == pytest.approx([5e-3, 2e-3])
    assert told["idle"] == pytest.approx(1e-3)


def test_on_a_gpu_memory_is_that_of_a_step_and_a_turn_begins_with_a_step_that_is_not_timed(monkeypatch):
    """Compiling may take more memory than a step; the first step of a turn takes memory again."""
    peak, taken = [0], []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0])
    timed = made()
    timed.device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(timed, "_give_back", lambda: None)
    step = timed.trainer.take_step

    def take_step():
        peak[0] = max(peak[0], 300 if taken else 900)
        taken.append(1)
        return step()

    monkeypatch.setattr(timed.trainer, "take_step", take_step)
    assert timed.warm_up()["peak_bytes"] == 300
    monkeypatch.setattr(timed, "_steps", lambda number: (taken.append(number), (0.5 / len(taken), 3.6))[1])
    taken.clear()
    timed.seconds = 0.1
    turn = timed.turn(0.35)
    assert taken == [1, 4] and turn == {"seconds": 0.25, "steps": 4, "loss": 3.6}


@pytest.mark.parametrize(
    "name, is_span",
    [
        ("Optimizer.step#AdamW.step", True),
        ("## Call CompiledFxGraph f55433 ##", True),
        ("void at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const", False),
    ],
)
def test_a_profile_leaves_out_spans_and_no_kernel(name, is_span):
    assert bool(stepper.SPAN.match(name)) is is_span


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


def test_what_is_timed_is_the_trainers_own_step(monkeypatch):
    taken = []
    own = Trainer.take_step
    monkeypatch.setattr(Trainer, "take_step", lambda self: (taken.append(self.state.step), own(self))[1])
    timed = made()
    timed.warm_up()
    steps = timed.turn(0.01)["steps"]
    assert taken == list(range(stepper.WARM_STEPS + steps))
    weights = [p.detach().clone() for p in timed.trainer.parameters]
    timed.turn(0.001)
    assert not all(torch.equal(a, b) for a, b in zip(weights, timed.trainer.parameters, strict=True))


def test_planted_sleep_is_in_the_time_of_a_step(monkeypatch):
    """By a clock that only the planted sleep moves: a step lasts as long as that, not a third of it, not thrice."""
    now = [0.0]
    timed = made()
    timed.warm_up()
    monkeypatch.setattr(stepper, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    timed.trainer.after_step.append(lambda trainer: now.__setitem__(0, now[0] + 0.03))
    timed.seconds = 0.03  # of the step before: three of them fill the turn
    turn = timed.turn(0.09)
    assert turn["steps"] == 3 and turn["seconds"] == pytest.approx(0.03)


def test_a_loss_that_counts_other_targets_is_a_failure():
    timed = made()
    step = timed.trainer.objective.step

    def miscounting(model, batch):
        loss = step(model, batch)
        return dataclasses.replace(loss, count=loss.count + 1)

    timed.trainer.objective.step = miscounting
    lines = []
    stepper.obey(lambda: timed, orders({"warm": True}), lines.append, {})
    assert "counts +2 targets beside those of the batch" in lines[-1]["failed"]  # in two micro-batches


class Scripted:
    """A contender's process that says what it is told to."""

    def __init__(self, built=None, warm=None, turns=(), dies=""):
        about = {"tokens": 96, "flops": 1e6, "parameters": 10, "parameters_of_ours": 10, "dtype": "fp32"}
        about |= {"loss_expected": 3.6, "loss_margin": 0.05, "sizes": {"B": 4}, "micro_batches": 2}
        self.lines = [
            {"built": about | (built or {})},
            {"warm": {"loss": 3.6, "norm": 1.0, "to_first_step": 0.1} | (warm or {})},
        ]
        self.lines += [{"turn": {"seconds": s, "steps": 3, "loss": 3.6} | more} for s, more in turns]
        self.told, self.dies, self.reason = [], dies, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def tell(self, what):
        self.told.append(what)

    def line(self, until):
        if self.lines:
            return self.lines.pop(0)
        self.reason = self.dies
        return None


STEADY = tuple((s, {}) for s in (0.10, 0.11, 0.12, 0.11, 0.10, 0.11, 0.12))


def measured(processes: dict[str, Scripted], kind="cpu") -> dict[str, dict]:
    """Return the rows of a recipe whose contenders are scripted, by name."""
    contenders = [Contender(name=n, peer=n.startswith("peer"), compiled=n.endswith("compiled")) for n in processes]
    recipe = small("gpt2-124m")
    context = Context(kind, False, None, [], 60.0, lambda text: None)
    until = section.time.monotonic() + 60
    rows = section.measure(recipe, contenders, context, until, lambda r, c, k: processes[c.name])
    return {row["contender"]: row for row in rows}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_contenders_take_turns_and_have_their_median(kind):
    both = {"minillm": Scripted(turns=STEADY), "peer, compiled": Scripted(turns=[(2 * s, {}) for s, _ in STEADY])}
    rows = measured(both, kind)
    assert {r["status"] for r in rows.values()} == {"measured"}
    assert rows["minillm"]["seconds"] == 0.11 and rows["minillm"]["rounds"] == 7
    assert rows["minillm"]["low"] == pytest.approx(0.105) and rows["minillm"]["high"] == pytest.approx(0.115)
    assert figures.beside_peer(rows["minillm"], list(rows.values())) == pytest.approx(2)
    assert [list(order) for order in both["minillm"].told[:2]] == [["warm"], ["seconds"]]


@pytest.mark.parametrize("kind, profiled", [("cpu", False), ("cuda", True)])
def test_on_a_gpu_the_first_contender_is_profiled_after_its_turns(kind, profiled):
    kernels = [["a_kernel", 2, 0.5]]
    first, second = Scripted(turns=STEADY if kind == "cpu" else STEADY + STEADY[:2]), Scripted(turns=STEADY + STEADY)
    first.lines.append({"profile": {"kernels": kernels}})
    rows = measured({"minillm": first, "peer": second}, kind)
    assert rows["minillm"]["status"] == "measured" and "note" not in rows["minillm"]
    assert rows["minillm"].get("kernels") == (kernels if profiled else None) and "kernels" not in rows["peer"]


@pytest.mark.parametrize(
    "fault, told",
    [
        (Scripted(built={"parameters": 9}, turns=STEADY), "9 parameters"),
        (Scripted(warm={"loss": 7.2}, turns=STEADY), "a loss of 7.2"),
        (Scripted(warm={"loss": float("nan")}, turns=STEADY), "a loss of nan"),
        (Scripted(turns=[(s, {"loss": 1.0}) for s, _ in STEADY]), "a loss of 1"),
        (Scripted(warm={"norm": 0.0}, turns=STEADY), "a gradient of norm 0"),
        (Scripted(warm={"norm": float("inf")}, turns=STEADY), "a gradient of norm inf"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_contender_that_trains_something_else_is_wrong_and_stands_beside_nobody(fault, told):
    rows = measured({"minillm": Scripted(turns=STEADY), "peer": fault})
    assert rows["peer"]["status"] == "wrong" and told in rows["peer"]["reason"]
    assert rows["minillm"]["status"] == "measured"
    assert figures.beside_peer(rows["minillm"], list(rows.values())) is None


def test_a_contender_that_dies_costs_only_itself():
    dead = Scripted(turns=STEADY[:1], dies="the process ended with status -11: CUDA error")
    never = Scripted(dies="no time left in the budget")
    never.lines = []
    failed = Scripted()
    failed.lines = [{"failed": "NotInstalled: transformers is not installed"}]
    late = Scripted(turns=STEADY[:4], dies="the process ended with status -9: it said nothing")
    rows = measured({"minillm": Scripted(turns=STEADY), "a": dead, "b": never, "peer": failed, "c": late})
    assert {n: r["status"] for n, r in rows.items()} == {
        "minillm": "measured",
        "a": "not run",
        "b": "not run",
        "peer": "not run",
        "c": "measured",
    }
    assert "CUDA error" in rows["a"]["reason"] and rows["b"]["reason"] == "no time left in the budget"
    assert rows["peer"]["reason"] == "NotInstalled: transformers is not installed"
    assert rows["c"]["rounds"] == 4 and "after 4 rounds: the process ended" in rows["c"]["note"]


def test_who_is_late_is_left_out_and_the_others_have_their_turns(monkeypatch):
    """Compiling may take all the time there is: seven tenths of it are waited for."""
    now = [0.0]
    monkeypatch.setattr(section, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Scripted):
        def line(self, until):
            now[0] += 22  # seconds of 60, of which 42 are waited for
            if now[0] > until:
                self.lines = []
            return super().line(until)

    slow = Slow(dies="no time left in the budget")
    rows = measured({"minillm": Scripted(turns=STEADY), "slow": slow, "late": Scripted()})
    assert [r["status"] for r in rows.values()] == ["measured", "not run", "not run"]
    assert {r.get("reason") for r in rows.values()} == {None, "no time left in the budget"}


def test_no_round_is_begun_that_would_not_end_in_time(monkeypatch):
    """A round takes 25 seconds of the 60: two are begun, and the contenders are not asked again."""
    now = [0.0]
    monkeypatch.setattr(section, "time", SimpleNamespace(monotonic=lambda: now[0]))
    slow = Scripted(turns=STEADY)
    own = slow.tell
    slow.tell = lambda what: (own(what), now.__setitem__(0, now[0] + 25 * ("seconds" in what)))
    rows = measured({"minillm": slow})
    assert [list(order) for order in slow.told] == [["warm"], ["seconds"], ["seconds"]]
    assert (rows["minillm"]["status"], rows["minillm"]["reason"]) == ("not run", "no time left in the budget")


def test_a_real_process_obeys_and_goes_when_it_is_left():
    recipe = ALL["shakespeare-char-small"]
    until = time.monotonic() + 60
    with section.start(recipe, recipe.contender("minillm, float32"), "cpu") as child:
        seat = section.Seat(recipe.contender("minillm, float32"), child)
        assert seat.has("built", {}, until), seat.reason
        assert seat.has("warm", {"warm": True}, until), seat.reason
        line = seat.ask({"seconds": 0.05}, until)
        process = child._child
    assert line is not None and line["turn"]["seconds"] > 0
    assert seat.built["parameters"] == seat.built["parameters_of_ours"] == 809_856
    assert seat.warm["peak_bytes"] > 4 * 4 * 809_856  # weights, gradients and two moments in float32
    assert process.poll() is not None


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


def test_recipes_share_the_time_alike_and_the_last_has_what_they_leave(monkeypatch):
    """The first takes all that it has, the second 20 seconds of its 50; the third, in spare time, has the rest."""
    now, given = [0.0], []
    monkeypatch.setattr(section, "time", SimpleNamespace(monotonic=lambda: now[0]))
    named = {n: dataclasses.replace(small("gpt2-124m"), name=n, in_spare_time=n == "c") for n in "abc"}
    monkeypatch.setattr(section, "recipes", lambda: named)

    def measure(recipe, contenders, context, until, start):
        given.append(until - now[0])
        now[0] += {"a": 50.0, "b": 20.0, "c": 0.0}[recipe.name]
        return []

    monkeypatch.setattr(section, "measure", measure)
    list(section.training(Context("cpu", False, None, [], 100.0, lambda text: None)))
    assert given == [50.0, 50.0, 30.0]


def test_on_a_gpu_turns_leave_time_for_the_profile(monkeypatch):
    """Turns take 8 seconds each of the 60: a seventh would end at 56, and the profile would have less than its 8."""
    now = [0.0]
    monkeypatch.setattr(section, "time", SimpleNamespace(monotonic=lambda: now[0]))
    slow = Scripted(turns=STEADY[:6])
    slow.lines.append({"profile": {"kernels": [["a_kernel", 2, 0.5]]}})
    own = slow.tell
    slow.tell = lambda what: (own(what), now.__setitem__(0, now[0] + 8 * ("seconds" in what)))
    row = measured({"minillm": slow}, "cuda")["minillm"]
    assert (row["status"], row["rounds"]) == ("measured", 6) and row["kernels"]


def test_the_last_contenders_leave_where_not_all_could_have_their_turns(monkeypatch):
    """Turns take 8 seconds each of the 60: three rounds of two contenders fit, of three they do not."""
    now = [0.0]
    monkeypatch.setattr(section, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Scripted):
        def tell(self, what):
            super().tell(what)
            now[0] += 8 * ("seconds" in what)

    rows = measured({name: Slow(turns=STEADY) for name in ("minillm", "peer", "last")})
    outcomes = [(r["status"], r.get("rounds")) for r in rows.values()]
    assert outcomes == [("measured", 3), ("measured", 3), ("not run", None)]
    assert rows["last"]["reason"] == "no time left in the budget"
