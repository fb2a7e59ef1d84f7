"""The CPU's defaults beside other formulations: who is a candidate, what the rounds say, and the command."""

import dataclasses
import json
import re

import minillm_kernels as mk
import pytest
import torch
import torch.nn.functional as F

from benchmarks import cpu_defaults
from benchmarks.cpu_defaults import Case, Effort, Measured, cases, measure, page, rival, sizes, slower
from benchmarks.cpu_formulations import FORMULATIONS, KINDS, MORE
from benchmarks.ops import BENCHMARKS

HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-02T00:00"}
EFFORT = Effort(rounds=3, seconds=0.0, compiles=False)


def one(provider="torch", samples=(1e-3, 1e-3, 1e-3), candidate=True, **given):
    """A provider with made-up samples."""
    figures = {"op": "relu", "recipe": "small", "dtype": "float32", "dims": {"R": 2}} | given
    return Measured(provider=provider, samples=samples, candidate=candidate, **figures)


def small(name):
    """A case of an op whose sizes are all a few."""
    letters = FORMULATIONS[name].shapes["cpu"][0].dims
    dims = {n: {"D": 4, "H": 2, "Hkv": 2, "V": 7}.get(n, 6) for n in letters}
    return Case(benchmark=FORMULATIONS[name], recipe="small", dims=dims, dtype=torch.float32)


def test_sizes_are_those_of_the_recipes():
    """By hand, from recipes/mlm-small.toml: 32 rows of 128 tokens, width 256, 4 heads, 8,192 pieces, 15 % masked."""
    found = sizes("mlm-small")
    step = {"B": 32, "T": 128, "S": 128, "R": 4096, "N": 4096, "C": 256, "V": 8192, "H": 4, "Hkv": 4, "D": 64}
    assert found == {"": step, "hidden": step | {"C": 1024}, "loss": step | {"R": 614}}
    assert sizes("shakespeare-char")[""]["B"] == 16  # of a micro-batch: that is what an op is given
    assert sizes("shakespeare-char-small")["loss"] == {**sizes("shakespeare-char-small")[""], "R": 768, "V": 65}


def test_every_op_of_a_training_step_is_measured_at_every_recipe():
    found = {(case.benchmark.name, case.recipe) for case in cases()}
    assert found == {(name, recipe) for name in FORMULATIONS for recipe in cpu_defaults.RECIPES}
    assert set(FORMULATIONS) == set(BENCHMARKS) - {"attention_decode"} | {"attention_dropout"}
    assert set(KINDS) <= set(FORMULATIONS)
    assert {case.benchmark.name for case in cases(["gelu"])} == {"gelu"}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_formulations_are_right_and_timed(name):
    """Each is checked against float64 first: none is left out, and the default comes first."""
    found = measure(small(name), EFFORT)
    found = [m for m in found if not (m.reason or "").startswith("Unavailable: PyTorch")]  # an older one has not all
    assert found[0].provider == "torch" and "reference" in {m.provider for m in found}
    assert {m.provider: m.reason for m in found if m.reason} == {}
    assert all(len(m.samples) == 3 and min(m.samples) > 0 for m in found)
    assert set(MORE.get(name, ())) <= {m.provider for m in found if m.candidate}


def test_other_numbers_and_held_logits_are_no_candidates():
    candidates = {name: {m.provider: m.candidate for m in measure(small(name), EFFORT)} for name in ("dropout", "relu")}
    assert candidates["dropout"] == {"torch": True, "reference": True, "F.dropout": False}
    assert candidates["relu"] == {"torch": True, "reference": True, "F.relu": True}
    losses = {m.provider: m.candidate for m in measure(small("linear_cross_entropy"), EFFORT)}
    assert not losses["F.linear, F.cross_entropy"] and not losses["F.linear_cross_entropy"]


def test_an_answer_in_another_dtype_is_no_candidate():
    """A loss is float32 here, and in PyTorch as narrow as its logits."""
    case = dataclasses.replace(small("cross_entropy"), dtype=torch.bfloat16)
    assert {m.provider: m.candidate for m in measure(case, EFFORT)} == {
        "torch": True,
        "reference": True,
        "F.cross_entropy": False,
    }


def test_a_wrong_formulation_is_not_timed(monkeypatch):
    case = small("relu")
    monkeypatch.setitem(case.benchmark.peers, "planted", lambda dims, device: lambda t: F.relu(t["x"]) + 1e-3)
    monkeypatch.setitem(case.benchmark.peers, "broken", lambda dims, device: lambda t: F.relu(t["y"]))
    found = {m.provider: m for m in measure(case, EFFORT)}
    assert re.fullmatch(r"output 0 is off by \S+ times what is allowed in root mean square", found["planted"].reason)
    assert found["broken"].reason == "KeyError: 'y'"
    assert not any(found[name].samples or found[name].candidate for name in ("planted", "broken"))


def test_the_default_is_what_a_plain_call_takes():
    assert [d.backend for d in mk.explain_dispatch("cpu")] == ["torch"] * len(mk.explain_dispatch("cpu"))


def test_slower_is_told_round_by_round():
    """Twice as long in each round is slower, though the rounds themselves differ tenfold; in two of four it is not."""
    slow, other = one(samples=(2.0, 20.0, 2.2, 18.0)), one("reference", (1.0, 10.0, 1.1, 9.0))
    assert slower([slow, other]) and not slower([other, one("reference", slow.samples)])
    assert not slower([one(samples=(2.0, 10.0, 2.2, 9.0)), other])
    assert not slower([slow, one("F.relu", (1.0,) * 4, candidate=False)]) and not slower([slow])


def test_rival_is_the_fastest_candidate():
    group = [one(), one("reference", (3e-3,) * 3), one("F.relu", (2e-3,) * 3), one("F.x", (1e-9,) * 3, candidate=False)]
    best = rival(group)
    assert best is not None and best.provider == "F.relu"
    assert rival([one(samples=(), reason="none"), one("reference")]) is None


def test_page_has_every_case_and_the_verdict():
    runs = [one(samples=(2e-3,) * 3), one("reference"), one("torch.compile", (5e-4,) * 3, candidate=False)]
    runs += [one("F.relu", (4e-3,) * 3, candidate=False), one("planted", (), candidate=False, reason="wrong")]
    runs += [one(op="gelu"), one("reference", (2e-3,) * 3, op="gelu")]
    lines = page(runs, HEAD).splitlines()
    assert "| relu | small | float32 | 2 (2-2) | reference | 1 (1-1) | **2.00** | 0.5 (0.5-0.5) |" in lines
    assert "| gelu | small | float32 | 1 (1-1) | reference | 2 (2-2) | 0.50 |  |" in lines
    assert "| relu | small | float32 | F.relu | 4 (4-4) | 0.50 |" in lines
    assert lines[-1] == "- relu, small, float32, planted: wrong"
    (verdict,) = [line for line in lines if line.startswith("In ")]
    assert verdict.startswith("In 1 of 2 cases no other is faster by 15 % or more")
    assert verdict.endswith("Faster are: relu, small, float32: reference.")


def test_command_writes_both_files(tmp_path, capsys):
    assert cpu_defaults.main(["--quick", "--ops", "relu", "embedding", "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "CPU_DEFAULTS.json").read_text())
    assert kept["quick"] and {run["op"] for run in kept["runs"]} == {"relu", "embedding"}
    assert "| embedding | shakespeare-char-small | float32 |" in (tmp_path / "CPU_DEFAULTS.md").read_text()
    assert capsys.readouterr().out.splitlines()[-1].endswith("CPU_DEFAULTS.md")
