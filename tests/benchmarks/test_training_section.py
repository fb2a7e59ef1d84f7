"""The section of recipes: contenders take turns, each costs only itself, and what cheats is found."""

import dataclasses
import time
from types import SimpleNamespace

import pytest
from small_recipes import ALL, small

from benchmarks import figures
from benchmarks.context import Context
from benchmarks.training import section
from benchmarks.training.registration import Contender


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
