"""What runs with a GPU alone, run without one: PyTorch's CUDA calls are replaced by ones that record.

Events tell the time of a clock that calls move; a graph records the calls made while it is captured, and replaying it
makes them again.
"""

import contextlib
import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings, child, machine, timing, warming, worker
from benchmarks.context import Context
from benchmarks.measure import EFFORTS, measure_case
from benchmarks.ops import BENCHMARKS
from benchmarks.ops.registration import OpBenchmark, Source
from benchmarks.timing import EventSampler, Times, interleaved

GPU = torch.device("cuda")


class Device:
    """A GPU's clock in seconds, what is done on it, and whether its context is lost."""

    def __init__(self):
        self.now, self.capturing, self.replays, self.lost = 0.0, None, 0, False
        self.forbidden = None  # what a call raises while it is captured
        self.streams, self.ended = [], []  # that were made the current one; whose allocation was ended

    def work(self, seconds):
        if self.capturing is not None:
            self.capturing.append(seconds)
            if self.forbidden is not None:
                raise self.forbidden
        else:
            self.now += seconds

    def synchronize(self):
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def gpu(monkeypatch):
    device = Device()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = device.now

        def synchronize(self):
            device.synchronize()

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    class Graph:
        def replay(self):
            device.replays += 1
            for seconds in self.calls:
                device.now += seconds

    @contextlib.contextmanager
    def capture(graph, pool=None, stream=None):
        assert stream is not None and pool == "pool" and device.capturing is None
        device.capturing = graph.calls = []
        try:
            yield
        finally:
            device.capturing = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: "pool",
        "set_stream": device.streams.append,
        "current_device": lambda: 3,
        "Stream": lambda: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "synchronize": device.synchronize,
        "empty_cache": lambda: None,
        "is_available": lambda: True,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 350,
        "get_device_properties": lambda d: SimpleNamespace(L2_cache_size=1000, total_memory=80 * 2**30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: device.ended.append(pool), raising=False)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **{**k, "device": "cpu"}))
    return device


def cover():
    return torch.zeros(4)


def test_a_replayed_graph_is_timed_by_events_over_all_copies(gpu):
    sampler = EventSampler(lambda i: gpu.work(2e-6 * (i + 1)), 3, cover(), graph=True)
    assert (sampler.method, sampler.note) == ("graph", "") and not gpu.ended
    before = gpu.replays
    assert sampler.sample() == pytest.approx(4e-6)  # of 2, 4 and 6
    assert gpu.replays - before == pytest.approx(timing.GPU_SAMPLE / 12e-6, abs=1)


def test_the_device_is_kept_busy_before_the_first_event_and_that_is_not_timed(gpu):
    """While it writes the cover the host submits the calls; what it writes is larger than its cache."""
    covered = []
    busy = SimpleNamespace(zero_=lambda: (covered.append(gpu.now), gpu.work(5.0)))
    sampler = EventSampler(lambda i: gpu.work(1e-6), 2, busy, graph=False)
    covered.clear()
    assert sampler.sample() == pytest.approx(1e-6, rel=1e-3) and len(covered) == 1


@pytest.mark.usefixtures("gpu")
def test_the_cover_is_larger_than_the_cache(monkeypatch):
    made = []
    monkeypatch.setattr(timing, "EventSampler", lambda call, copies, cover, graph: made.append(cover.nbytes) or 1 / 0)
    interleaved({"any": lambda i: None}, copies=1, device=GPU, rounds=1, seconds=1)
    assert made[0] > 2 * timing.cache_bytes(GPU)


def test_a_call_that_cannot_be_captured_is_timed_without_a_graph_and_says_so(gpu):
    gpu.forbidden = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    sampler = EventSampler(lambda i: gpu.work(1e-6), 2, cover(), graph=True)
    assert sampler.method == "events" and "not permitted when stream is capturing" in sampler.note
    assert gpu.ended == [(3, "pool")] and gpu.streams == [torch.cuda.current_stream()]  # as if it had not begun
    assert sampler.sample() == pytest.approx(1e-6) and gpu.replays == 0


def test_memory_that_ends_while_capturing_is_the_candidates_result(gpu):
    gpu.forbidden = torch.OutOfMemoryError("CUDA out of memory")
    found = interleaved({"large": lambda i: gpu.work(1e-6)}, copies=1, device=GPU, rounds=3, seconds=9)
    assert isinstance(found["large"], torch.OutOfMemoryError)


def test_without_a_graph_nothing_is_captured(gpu):
    gpu.forbidden = AssertionError("captured")
    found = interleaved({"plain": lambda i: gpu.work(1e-6)}, copies=1, device=GPU, rounds=3, seconds=9, graph=False)
    assert isinstance(found["plain"], Times) and found["plain"].method == "events" and not found["plain"].note


def test_a_candidate_that_fails_in_a_later_round_costs_only_itself(gpu):
    calls = iter(range(10**6))

    def late(i):
        gpu.work(1e-4)
        if next(calls) > 30:
            raise RuntimeError("CUDA error: unspecified launch failure")

    both = {"late": late, "fine": lambda i: gpu.work(1e-4)}
    found = interleaved(both, copies=1, device=GPU, rounds=50, seconds=9, graph=False)
    assert isinstance(found["late"], RuntimeError) and isinstance(found["fine"], Times)
    assert len(found["fine"].samples) == 50


def test_a_lost_device_ends_the_process_and_blames_nobody_else(gpu):
    """What comes after a wrong address would fail too: it must not be taken for their fault."""

    def wrong_address(i):
        gpu.lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    heard = []
    candidates = {"first": wrong_address, "second": lambda i: gpu.work(1e-6)}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        interleaved(candidates, copies=1, device=GPU, rounds=3, seconds=9, heard=heard.append)
    assert heard == ["first"]


def test_who_loses_the_device_in_a_later_round_is_the_last_that_was_heard_of(gpu):
    """Whoever reads the names blames the last one; all were heard of before the first round."""
    calls = iter(range(10**6))

    def late(i):
        gpu.work(1e-4)
        if next(calls) > 30:
            gpu.lost = True
            raise RuntimeError("CUDA error: device-side assert triggered")

    heard = []
    both = {"late": late, "fine": lambda i: gpu.work(1e-4)}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        interleaved(both, copies=1, device=GPU, rounds=50, seconds=9, graph=False, heard=heard.append)
    assert heard == ["late", "fine", "late"]


@pytest.mark.parametrize(
    "said, told",
    [
        pytest.param(
            "Traceback (most recent call last):\n  File a.py\ntorch.AcceleratorError: CUDA error: an illegal address\n"
            "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` for more.\n",
            "torch.AcceleratorError: CUDA error: an illegal address",
            id="python",
        ),
        pytest.param(
            "terminate called after throwing\n  what():  CUDA error: device-side assert\nframe #0: c10::Error\n",
            "what():  CUDA error: device-side assert",
            id="c++",
        ),
        pytest.param("Killed\n", "Killed", id="neither"),
        pytest.param("\n", "it said nothing", id="nothing"),
    ],
)
def test_last_words_of_a_process_are_its_error(tmp_path, said, told):
    (tmp_path / "log").write_text(said)
    assert child.Child._last_words(SimpleNamespace(_log=tmp_path / "log")) == told


@pytest.mark.usefixtures("gpu")
def test_a_case_on_a_gpu_has_every_provider_in_bfloat16_with_its_memory(monkeypatch):
    """From check to rows; the kernel's and PyTorch's code run on the CPU in the GPU's place."""
    here = torch.device("cpu")
    own = OpBenchmark.provider
    in_place = {"fused": "torch", "torch.compile": "torch"}
    monkeypatch.setattr(OpBenchmark, "provider", lambda s, n, d, device: own(s, in_place.get(n, n), d, here))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    made = Source.__init__
    monkeypatch.setattr(Source, "__init__", lambda self, device, seed=0: made(self, here, seed))
    shape = SimpleNamespace(name="tiny", dims={"R": 4, "C": 6}, check={"R": 2})
    rows = measure_case(BENCHMARKS["relu"], shape, GPU, EFFORTS["cuda"][True], gone={"F.relu": "it died"})
    assert {(r["provider"], r["direction"]) for r in rows} == {
        (p, d) for p in BENCHMARKS["relu"].timed() for d in ("forward", "forward+backward")
    }
    for row in rows:
        if row["provider"] == "F.relu":
            assert (row["status"], row["reason"]) == ("not run", "it died")
            continue
        if row["provider"] == "copy":
            assert row["status"] == "measured" and "error_share" not in row
            continue
        assert (row["status"], row["dtype"], row["peak_bytes"], row["repeats"]) == ("measured", "bf16", 250, True)
        assert row["check_dims"] == {"R": 2, "C": 6} and row["copies"] == timing.copies_for(row["bytes"], GPU)


@pytest.mark.parametrize("ways", [(1.0, 2.0, 4.0), (4.0, 1.0, 2.0), (4.0, 2.0, 1.0)], ids=["graph", "plain", "kernel"])
def test_ceilings_are_the_best_rate_of_what_is_copied_and_multiplied(monkeypatch, ways):
    """Bytes read and written, two operations a multiply-add; a size or a way that is slower changes nothing."""
    seconds = iter([*ways, 1.0, 9.0, 8.0])  # three ways to copy, two sizes in bfloat16, one in float32
    worked = []

    def interleaved(candidates, **more):
        ((name, call),) = candidates.items()
        counter = FlopCounterMode(display=False)
        with counter:
            result = call(0)
        worked.append(counter.get_total_flops() or 2 * result.nbytes)
        return {name: Times((next(seconds),) * 3, "graph")}

    monkeypatch.setattr(ceilings, "interleaved", interleaved)
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cuda": 4096})
    monkeypatch.setattr(ceilings, "MATRIX_SIDES", {"cuda": {torch.bfloat16: (8, 16), torch.float32: (4,)}})
    for name in ("randn", "empty_like"):  # on the CPU in the GPU's place
        own = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, own=own, **k: own(*a, **{**k, "device": "cpu"}))
    torch.backends.cuda.matmul.allow_tf32 = True
    *_, found = ceilings.measure(GPU, rounds=3, seconds=1.0)
    assert worked == [8192, 8192, 8192, 2 * 8**3, 2 * 16**3, 2 * 4**3]
    rates = {name: ceiling["rate"] for name, ceiling in found.items()}
    assert rates == {"copy": 8192 / 1.0, "matrix bf16": 2 * 8**3 / 1.0, "matrix fp32": 2 * 4**3 / 8.0}
    assert not torch.backends.cuda.matmul.allow_tf32  # float32 is that in full precision


def test_an_interpreter_that_is_asked_for_is_not_what_children_measure(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" not in child.environment()


def test_size_of_the_cache_is_the_devices_or_a_guess(gpu, monkeypatch):
    assert timing.cache_bytes(GPU) == 1000
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace())
    assert timing.cache_bytes(GPU) == 50 * 2**20


@pytest.mark.parametrize(
    "answers, expected",
    [
        ({"a,b": "1980 MHz, Active"}, {"a": "1980 MHz", "b": "Active"}),
        ({"a": "1980 MHz"}, {"a": "1980 MHz"}),  # a driver that does not know b fails the two together
        ({}, {}),  # no nvidia-smi
    ],
    ids=["together", "one-unknown", "missing"],
)
def test_driver_is_asked_once_and_field_by_field_where_it_knows_not_all(monkeypatch, answers, expected):
    monkeypatch.setattr(machine, "smi", lambda fields: answers.get(fields, ""))
    assert machine.driver_says(("a", "b")) == expected


def test_without_nvidia_smi_a_clock_is_empty(monkeypatch):
    def missing(*a, **k):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.clock() == ""


def chosen(*sections, kind="cuda"):
    return Context(kind, False, None, [], 60.0, lambda text: None, chosen=sections)


def test_what_is_warmed_up_is_what_compiles_in_the_sections_to_come(tmp_path):
    lanes = warming.commands(chosen("correctness", "ops", "recipes"), tmp_path)
    recipes = [(c[3], c[4]) for lane in lanes for c in lane if c[2] == "benchmarks.training.stepper"]
    assert set(recipes) == {
        (r, f"{who}, compiled") for r in ("gpt2-124m", "bert-base", "llama-125m") for who in ("minillm", "transformers")
    }
    begun = [lane[0][3:5] for lane in lanes]  # peers compile longest: only what is begun at once is done with the tests
    assert ["gpt2-124m", "transformers, compiled"] in begun and ["bert-base", "transformers, compiled"] in begun
    ((ops,),) = (
        [c for c in lane if c[2] == "benchmarks.worker"] for lane in lanes if lane[0][2] == "benchmarks.worker"
    )
    cases = json.loads(ops[ops.index("--cases") + 1])
    assert cases == [[*case, {}] for case in worker.cases("cuda", quick=True, ops=None)]
    skipped = json.loads(ops[ops.index("--skip") + 1])
    assert not {"torch.compile", "FlexAttention", "fused"} & set(skipped) and "torch" in skipped
    assert warming.commands(chosen("correctness"), tmp_path) == []


def test_warming_ends_with_the_tests_and_starts_nothing_on_a_cpu(monkeypatch):
    started, ended = [], []
    monkeypatch.setattr(warming, "commands", lambda context, folder: [[["a"], ["b"]], [["c"]]])
    process = SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr(child, "start", lambda command, **k: (started.append(command), process)[1])
    monkeypatch.setattr(child, "end", ended.append)
    with warming.warming(chosen("ops", kind="cpu")):
        pass
    assert started == []
    with warming.warming(chosen("ops")):
        while len(started) < 2:
            time.sleep(0.01)
        time.sleep(0.3)  # longer than a look at a process takes
    assert sorted(started) == [["a"], ["c"]] and ended == [process, process]  # b never came to its turn
