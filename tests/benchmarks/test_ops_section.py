"""The section of the ops: a case or a provider that ends its process costs only itself, and times are taken again."""

import json

from benchmarks import sections, worker
from benchmarks.context import Context
from benchmarks.ops import BENCHMARKS


class Lines:
    """A child that writes what it is told: `script` has one list of lines for each time that one is started."""

    def __init__(self, script):
        self.script, self.words = script, []

    def __call__(self, module, words=(), **more):
        self.now = self.script.pop(0)
        self.words.append(words)
        self.more = more
        self.reason = "the process ended with status -11: it said nothing"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def lines(self, until):
        yield from self.now


def run_ops(monkeypatch, script, say=lambda text: None):
    """Return what the section finds, and the cases that each of its children was given."""
    child = Lines(script)
    monkeypatch.setattr(sections, "Child", child)
    context = Context("cpu", True, ["relu", "gelu", "relu2"], [], 60.0, say)
    found = list(sections.ops(context))[-1]
    return found, [json.loads(words[words.index("--cases") + 1]) for words in child.words]


RELU, GELU, RELU2 = (["relu", "tiny"], ["gelu", "tiny"], ["relu2", "tiny"])


def test_a_case_that_ends_its_process_is_blamed_and_the_rest_goes_on(monkeypatch):
    found, _ = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"done": RELU, "rows": [{"op": "relu"}]}, {"start": GELU}],  # and it ends
            [{"start": RELU2}, {"failed": RELU2, "reason": "ValueError: no"}],
        ],
    )
    assert found["rows"] == [{"op": "relu"}]
    reasons = {n["case"][0]: n["reason"] for n in found["not_run"]}
    assert "status -11" in reasons["gelu"] and reasons["relu2"] == "ValueError: no"


def test_a_provider_that_ends_its_process_is_left_out_and_its_case_begins_anew(monkeypatch):
    found, given = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"provider": "torch"}, {"provider": "fused"}],  # and it ends
            [{"start": RELU}, {"provider": "torch"}, {"done": RELU, "rows": [{"op": "relu"}]}]
            + [{"start": GELU}, {"done": GELU}, {"start": RELU2}, {"done": RELU2}],
        ],
    )
    assert found["rows"] == [{"op": "relu"}] and found["not_run"] == []
    assert [case[2] for case in given[0]] == [{}, {}, {}]
    left_out = {op: why for op, _, why in given[1]}
    assert {op: list(why) for op, why in left_out.items()} == {"relu": ["fused"], "gelu": [], "relu2": []}
    assert "status -11" in left_out["relu"]["fused"]


def test_the_most_telling_case_of_every_op_comes_first_and_every_case_once():
    """What a model's step spends most time in, before all others; then the second shapes in the same order."""
    cases = worker.cases("cuda", quick=False, ops=None)
    names = [op for op, _ in cases]
    assert names[:3] == ["attention_causal", "linear_cross_entropy", "layer_norm"]
    assert sorted(names[: len(BENCHMARKS)]) == sorted(BENCHMARKS) and names[len(BENCHMARKS)] == names[0]
    assert sorted(cases) == sorted((b.name, s.name) for b in BENCHMARKS.values() for s in b.shapes["cuda"])


def test_a_provider_that_falls_silent_costs_less_than_half_of_the_ops(monkeypatch):
    (budget,) = (s.budget("cuda", False) for s in sections.SECTIONS if s.name == "ops")
    assert sections.PATIENCE["cuda"] < budget / 2
    child = Lines([[]])
    monkeypatch.setattr(sections, "Child", child)
    list(sections.ops(Context("cpu", True, ["relu"], [], 60.0, lambda text: None)))
    assert child.more["patience"] == sections.PATIENCE["cpu"]


def test_a_case_that_dies_again_and_again_is_given_up(monkeypatch):
    dying = [[{"start": RELU}, {"provider": name}] for name in ("fused", "torch", "reference", "F.relu")]
    found, _ = run_ops(monkeypatch, [*dying, [{"start": GELU}, {"done": GELU}, {"start": RELU2}, {"done": RELU2}]])
    assert [n["case"] for n in found["not_run"]] == [RELU]


def test_a_process_that_cannot_begin_is_not_started_for_ever(monkeypatch):
    found, _ = run_ops(monkeypatch, [[]])
    assert {n["case"][0] for n in found["not_run"]} == {"relu", "gelu", "relu2"}


def test_cases_are_visited_again_and_their_spread_covers_all_visits(monkeypatch):
    """Without who was not timed, and without compilers; a visit that is cut short keeps what it found, and says so."""
    key = {"op": "relu", "shape": "tiny", "dtype": "fp32", "direction": "forward"}
    torch = {**key, "provider": "torch"}
    absent = {**key, "provider": "fused", "status": "not run", "reason": "needs a GPU"}
    first = {**torch, "status": "measured", "seconds": 2.0, "low": 1.9, "high": 2.1}
    said: list[str] = []
    found, given = run_ops(
        monkeypatch,
        [
            [{"start": RELU}, {"done": RELU, "rows": [first, absent]}]
            + [{"start": GELU}, {"failed": GELU, "reason": ""}, {"start": RELU2}, {"failed": RELU2, "reason": ""}],
            [{"start": RELU}, {"done": RELU, "rows": [{**torch, "seconds": 3.0, "low": 2.9, "high": 3.2}]}],
            [{"start": RELU}, {"provider": "torch"}],  # and it ends
        ],
        said.append,
    )
    measured, other = found["rows"]
    assert [measured[n] for n in ("seconds", "low", "high", "visits")] == [2.5, 1.9, 3.2, [2.0, 3.0]]
    assert other == absent
    assert given[1] == given[2] == [[*RELU, {"fused": "needs a GPU"}]]
    assert "status -11" in said[-1]


def test_times_are_taken_again_by_another_process(monkeypatch):
    monkeypatch.setattr(sections, "VISITS", {"cpu": 2})
    context = Context("cpu", True, ["relu"], ["reference"], 60.0, lambda text: None)
    *_, found = sections.ops(context)
    visits = {(r["provider"], r["direction"]): len(r.get("visits", ())) for r in found["rows"] if "seconds" in r}
    assert visits and set(visits.values()) == {2}, visits


def test_what_does_not_fit_is_not_run():
    context = Context("cpu", True, ["relu"], [], 0.0, lambda text: None)
    (found,) = sections.ops(context)  # and nothing is visited again
    assert found["not_run"] == [{"case": ["relu", "tiny"], "reason": "no time left in the budget"}]
