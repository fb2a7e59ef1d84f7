"""Launch tables: knobs turn what the launchers read, and a walk suggests only what is faster, again, and right."""

from pathlib import Path
from types import SimpleNamespace

import minillm_kernels as mk
import pytest
import torch
from minillm_kernels.attention import configs
from minillm_kernels.attention.decode import MIN_KEYS
from minillm_kernels.row_norm import SHORT
from torch.nn import functional as F

from benchmarks import explore, knobs
from benchmarks.explore import walk
from benchmarks.ops import BENCHMARKS
from benchmarks.ops.registration import OpBenchmark, Source
from benchmarks.timing import Times

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda")


@pytest.fixture(params=["sm_80", "sm_90", "gfx942"])
def everything(monkeypatch, request):
    monkeypatch.setattr(configs, "device_class", lambda device: request.param)
    return knobs.knobs(GPU, wide=True)


class Dial:
    """A knob on a number, whose time is that number, and what was measured."""

    def __init__(self, value, spread=0.01, seconds=float):
        self.value, self.spread, self.seconds, self.asked = value, spread, seconds, []

    def knob(self, neighbours=lambda n: [n - 1, n + 1]):
        return knobs.Knob(
            "file.py",
            "DIAL",
            "",
            SimpleNamespace(),
            lambda: self.value,
            lambda value: setattr(self, "value", value),
            neighbours,
            lambda: f"DIAL = {self.value}",
        )

    def measure(self, knob, values):
        self.asked.append(list(values))
        found = {}
        for value in values:
            t = self.seconds(value)
            found[value] = (
                t if isinstance(t, Exception) else Times((t * (1 - self.spread), t, t * (1 + self.spread)), "graph")
            )
        return found


def test_walk_goes_down_to_the_fastest_and_says_how_much_faster():
    dial = Dial(10)
    found = walk(
        Dial(10).knob(lambda n: [m for m in (n - 1, n + 1) if 4 <= m]), dial.measure, lambda knob: "", steps=20
    )
    assert (found["was"], found["now"], found["line"]) == ("10", "4", "DIAL = 4")
    assert found["faster"] == pytest.approx(10 / 4) and found["failed"] == 0 and found["tried"] == 8  # 4 to 11


def test_walk_ends_after_its_steps():
    dial = Dial(10)
    assert walk(dial.knob(), dial.measure, lambda knob: "", steps=1)["now"] == "9"
    assert dial.value == 9 and dial.asked[0] == [10, 9, 11]


def test_a_difference_within_the_spread_changes_nothing():
    dial = Dial(10, spread=0.2)
    found = walk(dial.knob(), dial.measure, lambda knob: "", steps=3)
    assert dial.value == 10 and "line" not in found and found["faster"] == 1.0


def test_what_is_faster_once_and_not_again_is_not_suggested():
    calls = iter(range(10**6))
    dial = Dial(10, seconds=lambda n: n if next(calls) < 3 else 10.0)
    found = walk(dial.knob(), dial.measure, lambda knob: "", steps=1)
    assert dial.value == 10 and "not faster when it was timed again" in found["reason"]


def test_what_is_faster_and_wrong_is_not_suggested_and_not_left_set():
    dial = Dial(10)
    found = walk(
        dial.knob(), dial.measure, lambda knob: "dq is off by 9 times what is allowed" * (dial.value < 10), steps=2
    )
    assert dial.value == 10 and "line" not in found
    assert "8 is faster and wrong: dq is off" in found["reason"]


def test_settings_that_do_not_run_are_counted_and_passed_over():
    dial = Dial(10, seconds=lambda n: RuntimeError("out of shared memory") if n > 10 else float(n))
    found = walk(dial.knob(), dial.measure, lambda knob: "", steps=1)
    assert (found["now"], found["tried"], found["failed"]) == ("9", 2, 1)


def test_a_knob_whose_present_setting_fails_is_reported(monkeypatch):
    dial = Dial(10, seconds=lambda n: RuntimeError("no"))
    knob = dial.knob()
    monkeypatch.setattr(explore, "knobs", lambda device, wide: [knob])
    monkeypatch.setattr(explore, "timed", lambda knob, values, device: dial.measure(knob, values))
    lines = []
    explore.explore(lines.append, torch.device("cpu"), [knob.title], wide=False)
    assert lines[0] == {"start": "DIAL (file.py)"}
    assert lines[1]["found"]["reason"] == "RuntimeError: no" and lines[1]["found"]["name"] == "DIAL"


def test_every_knob_writes_a_line_that_stands_in_its_file(everything):
    assert len({knob.title for knob in everything}) == len(everything)
    for knob in everything:
        lines = [x.partition("  #")[0].strip() for x in (ROOT / knob.file).read_text(encoding="utf-8").splitlines()]
        if knob.file.endswith("configs.py"):  # which may write its tables over several lines
            lines = " ".join(lines).replace("( ", "(").replace(", )", ")")
        derived = knob.name.startswith("gfx942") and knob.name.endswith("float32")  # from another device's, by a rule
        assert derived or knob.written() in lines, knob.title


def test_every_knob_can_be_turned_and_turns_back(everything):
    for knob in everything:
        before = knob.get()
        near = knob.neighbours(before)
        assert near and before not in near, knob.title
        with knob.at(near[0]):
            assert knob.get() == near[0] != before
        assert knob.get() == before


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(configs, "device_class", lambda device: "sm_90")
    return knobs.knobs(GPU, wide=True)


@pytest.mark.parametrize("row", knobs.ROWS)
def test_case_of_a_row_launches_what_the_row_is_for(hopper, monkeypatch, row):
    """At small sizes, in the interpreter: the table is asked for the kernel, the width and the kind of the row."""
    case = knobs.attention_case(row, 64)
    asked = []
    own = configs.launch

    def launch(kernel, device, dtype, D, heavy):
        asked.append((kernel + (" float32" if dtype == torch.float32 else " heavy" if heavy else ""), D))
        return own(kernel, "interpreter", dtype, D, heavy)

    monkeypatch.setattr(configs, "launch", launch)
    T, S = (1, MIN_KEYS) if row.startswith("decode") else (4, 4)
    small = {"B": 1, "T": T, "S": S, "H": 1, "Hkv": 1, "D": 64}
    dtype = case.dtype if case.dtype == torch.float32 else torch.float16  # the interpreter has no bfloat16
    tensors = case.benchmark.inputs(small, dtype, Source(torch.device("cpu")))
    for tensor in tensors.values():
        tensor.requires_grad_(case.direction != "forward")
    with mk.backend("fused"):
        y = case.benchmark.call(tensors, small)
        if case.direction != "forward":
            y.sum().backward()
    assert (row, 64) in asked


@pytest.mark.parametrize("D", [16, 64, 256])
@pytest.mark.parametrize("row", knobs.ROWS)
@pytest.mark.usefixtures("hopper")
def test_entry_of_attention_is_what_a_launch_of_that_kernel_and_width_takes(row, D):
    knob, (kernel, _, kind) = knobs.attention_knob(row, D, GPU), row.partition(" ")
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    with knob.at(knob.neighbours(knob.get())[0]):
        assert configs.launch(kernel, "sm_90", dtype, D, heavy=kind == "heavy") == knob.get()


@pytest.mark.parametrize("entry", knobs.CONSTANTS, ids=lambda e: f"{e[0]}.{e[1]}")
def test_constant_is_one_that_the_launcher_reads(monkeypatch, entry):
    """Turned, it changes what a kernel is launched with; at small sizes, in the interpreter, which has no bfloat16."""
    import importlib

    knob = knobs.constant_knob(*entry)
    module = importlib.import_module(f"minillm_kernels.{entry[0]}")
    sizes = {"R": 96, "B": 2, "T": 40, "H": 3, "Hkv": 3, "D": 64, "N": 300, "V": 50}
    sizes["C"] = 96 if knob.case.dims.get("C", 0) <= SHORT else SHORT + 16  # short rows have launches of their own
    dims = {name: sizes[name] for name in knob.case.dims}
    launched = []
    own = module.launch
    monkeypatch.setattr(module, "launch", lambda *a, **k: (launched.append((a[1], k)), own(*a, **k))[1])

    def launches():
        launched.clear()
        tensors = knob.case.benchmark.inputs(dims, torch.float16, Source(torch.device("cpu")))
        floating = [t for t in tensors.values() if t.is_floating_point()]
        for tensor in floating:
            tensor.requires_grad_(knob.case.direction != "forward")
        with mk.backend("fused"):
            y = knob.case.benchmark.call(tensors, dims)
            if knob.case.direction != "forward":
                sum(t.sum() for t in (y if isinstance(y, tuple) else (y,))).backward()
        return list(launched)

    before = launches()
    assert before, f"{entry[0]} launches nothing"
    with knob.at(knob.neighbours(knob.get())[0]):
        assert launches() != before


@pytest.mark.parametrize(
    "dtype, fault, told",
    [
        (torch.float32, lambda y: y, ""),
        (torch.float32, lambda y: y + 0.1, "output 0 is off by"),
        (torch.bfloat16, lambda y: y, ""),
        (torch.bfloat16, lambda y: (1.025 * y.float()).bfloat16(), "output 0 is off by"),  # the largest may be by 3 %
    ],
    ids=["f32-right", "f32-wrong", "bf16-right", "bf16-wrong-everywhere"],
)
def test_verdict_tells_of_a_kernel_that_is_wrong(monkeypatch, dtype, fault, told):
    """A planted error in what stands for the kernel is told; without one nothing is."""
    monkeypatch.setattr(explore, "CHECK", {"R": 8, "C": 8})
    own = OpBenchmark.provider

    def provider(self, name, dims, device):
        return own(self, "reference", dims, device) if name != "fused" else lambda t: fault(F.gelu(t["x"]))

    monkeypatch.setattr(OpBenchmark, "provider", provider)
    case = knobs.Case(BENCHMARKS["gelu"], {"R": 8192, "C": 3072}, dtype, "forward")
    found = explore.verdict(SimpleNamespace(case=case), torch.device("cpu"))
    assert found.startswith(told) and bool(found) == bool(told)
