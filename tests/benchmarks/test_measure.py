"""Providers with planted faults: what is wrong is reported as wrong, what is slow as slow, what fails as not run."""

import dataclasses
import time

import pytest
import torch

from benchmarks import figures
from benchmarks.measure import Effort, copying, measure_case, time_again
from benchmarks.ops import BENCHMARKS
from benchmarks.ops.registration import Shape, Unavailable

CPU = torch.device("cpu")
SHAPE = Shape("tiny", {"R": 16, "C": 32})
PLAIN = ("reference", "torch.compile", "F.relu")  # not needed here


def rows_with(run, shape=SHAPE, **more):
    """Return the rows of relu with one more provider, by (provider, direction), and all of them."""
    benchmark = dataclasses.replace(BENCHMARKS["relu"], peers={"planted": lambda dims, device: run}, **more)
    rows = measure_case(benchmark, shape, CPU, Effort(rounds=5, seconds=2.0), skip=PLAIN)
    return {(r["provider"], r["direction"]): r for r in rows}, rows


def test_planted_error_is_wrong_and_has_no_speedup():
    found, rows = rows_with(lambda t: t["x"].relu() + 1e-3 * (t["x"] > 0))
    row = found["planted", "forward"]
    assert row["status"] == "wrong" and row["error_share"] > 1 and "output 0" in row["reason"]
    assert figures.speedup(row, rows) is None
    assert figures.speedup(found["torch", "forward"], rows) == 1


def test_planted_error_in_the_gradient_is_wrong_only_with_the_backward_pass():
    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.relu()

        @staticmethod
        def backward(ctx, dy):
            return dy  # without the mask

    found, _ = rows_with(lambda t: WrongBackward.apply(t["x"]))
    assert found["planted", "forward"]["status"] == "measured"
    assert found["planted", "forward+backward"]["status"] == "wrong"
    assert found["planted", "forward+backward"]["error_where"] == "dx"


def test_nan_is_wrong():
    found, _ = rows_with(lambda t: t["x"].relu() * float("nan"))
    assert found["planted", "forward"]["status"] == "wrong"


def test_planted_sleep_is_measured():
    def sleeping(t):
        time.sleep(0.02)
        return t["x"].relu()

    found, rows = rows_with(sleeping)
    row = found["planted", "forward"]
    assert row["status"] == "measured" and row["low"] >= 0.02
    assert figures.speedup(row, rows) < 0.5


def test_results_that_differ_from_call_to_call_are_said_to():
    calls = iter(range(10**9))
    found, _ = rows_with(lambda t: t["x"].relu() * (1 + 1e-7 * (next(calls) % 2)))
    assert found["planted", "forward"]["repeats"] is False
    assert found["torch", "forward"]["repeats"] is True


def test_what_is_not_finite_at_the_timed_sizes_has_no_speedup():
    """The check may take smaller sizes, at which it is right."""
    shape = Shape("tiny", {"R": 16, "C": 32}, {"R": 4})
    found, rows = rows_with(lambda t: t["x"].relu() / (len(t["x"]) == 4), shape)
    row = found["planted", "forward"]
    assert (row["status"], row["finite"]) == ("measured", False) and figures.speedup(row, rows) is None


@pytest.mark.parametrize("error", [Unavailable("no such device"), RuntimeError("broken\nin two lines")])
def test_provider_that_raises_is_not_run_and_the_others_are(error):
    def raising(t):
        raise error

    found, _ = rows_with(raising)
    assert found["planted", "forward"]["status"] == "not run"
    assert str(error).splitlines()[0] in found["planted", "forward"]["reason"]
    assert found["torch", "forward"]["status"] == "measured"


def test_unchecked_provider_is_timed_without_speedup():
    found, rows = rows_with(lambda t: t["x"] + 1, unchecked=frozenset({"planted"}))
    row = found["planted", "forward"]
    assert row["status"] == "measured" and "error_share" not in row
    assert figures.speedup(row, rows) is None


@pytest.mark.parametrize("num_bytes", [0, 1, 4000])
def test_a_copy_reads_half_of_the_bytes_and_writes_the_other_half(num_bytes):
    """And no copy finds what another one read."""
    call = copying(num_bytes, 2, CPU)
    first, second = call(0), call(1)
    assert first.nbytes == second.nbytes == max(4, num_bytes // 2)
    assert not torch.equal(first, second)


def test_a_copy_is_timed_beside_what_memory_bounds():
    found, rows = rows_with(lambda t: t["x"].relu())
    for direction in ("forward", "forward+backward"):
        copy, torchs = found["copy", direction], found["torch", direction]
        assert copy["status"] == "measured" and copy["bytes"] == torchs["bytes"]
        assert figures.beside_copy(torchs, rows) == copy["seconds"] / torchs["seconds"]
        assert figures.beside_copy(copy, rows) == 1 and figures.speedup(copy, rows) is None
    timed = time_again(BENCHMARKS["relu"], SHAPE, CPU, Effort(rounds=3, seconds=1.0), ["copy", "torch"])
    expected = [(p, d) for d in ("forward", "forward+backward") for p in ("copy", "torch")]
    assert [(r["provider"], r["direction"]) for r in timed] == expected


def test_products_have_no_copy_beside_them():
    assert not any("copy" in BENCHMARKS[name].timed() for name in ("attention_causal", "linear_cross_entropy"))


def test_interpreter_is_never_timed():
    found, _ = rows_with(lambda t: t["x"].relu())
    if not torch.cuda.is_available():
        assert found["fused", "forward"]["status"] == "not run"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_provider_of_every_op_is_right(name):
    """But for the compiler's, which takes minutes: the command tries it."""
    small = {"R": 24, "C": 16, "V": 40, "N": 24, "B": 2, "T": 16, "S": 16, "H": 4, "Hkv": 4, "D": 8}
    if name == "attention_decode":
        small["T"] = 1
    dims = {n: small[n] for n in BENCHMARKS[name].shapes["cpu"][0].dims}
    rows = measure_case(BENCHMARKS[name], Shape("tiny", dims), CPU, Effort(1, 0.0), skip=("torch.compile",))
    assert {r["status"] for r in rows} <= {"measured", "not run"}, [r for r in rows if r["status"] == "wrong"]
    strangers = [r["reason"] for r in rows if r["status"] == "not run" and not r["reason"].endswith("needs a GPU")]
    assert all("never timed" in x or "has no F.linear_cross_entropy" in x for x in strangers)
