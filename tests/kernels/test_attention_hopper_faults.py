"""Each fault that is put into the Hopper kernel is found by a named check, in the emulator, in some order of things.

Races and hangs are what such a kernel can have beside wrong numbers, and a GPU may show them once in a thousand runs:
the text of the kernel is changed in one place, and the check beside the fault has to fail.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import inputs, numbers
from gluon_emulator import Deadlock, Hazard
from hopper_cases import assert_right, attend
from minillm_kernels.attention import hopper

ORDERS = [(seed, late) for seed in range(6) for late in (True, False)]
RIGHT = AssertionError  # what a wrong number raises, and the classes of all that the emulator finds


def attended(monkeypatch, kernel, shape, o, launch=(32, 2, True)):
    tensors, _ = inputs(shape, torch.float16)
    for seed, late in ORDERS:
        assert_right(attend(monkeypatch, tensors, o, "emulated", launch, seed, late, kernel), tensors, o)


def full(monkeypatch, kernel):
    """The check of `test_any_number_of_keys_and_places` and, by its orders, of `test_any_order_gives_the_same_bits`."""
    attended(monkeypatch, kernel, (1, 70, 170, 1, 1, 16), {})


def causal(monkeypatch, kernel):
    """The same, with queries that see nothing of the last tiles."""
    attended(monkeypatch, kernel, (1, 140, 140, 1, 1, 16), {"causal": True})


def grouped(monkeypatch, kernel):
    """The check of `test_as_close_to_truth_as_reference[grouped]`."""
    attended(monkeypatch, kernel, (2, 20, 20, 4, 2, 16), {})


def empty_row(monkeypatch, kernel):
    """The check of `test_query_that_sees_nothing_gets_zeros_and_infinity`."""
    attended(monkeypatch, kernel, (1, 30, 20, 1, 1, 16), {"causal": True})


def padded(monkeypatch, kernel):
    """The check of `test_padding_on_the_right`."""
    attended(monkeypatch, kernel, (2, 20, 70, 1, 1, 16), {"key_stop": numbers(40, 0)})


K_WAIT = "    mbarrier.wait(k_ready.index(after), ((n + 1) // STAGES) & 1, pred=n + 1 < num_tiles)\n"
V_WAIT = "    mbarrier.wait(v_ready.index(before), ((n - 1) // STAGES) & 1)\n"
K_BACK = "    mbarrier.arrive(k_empty.index(place), count=1)\n"
V_BACK = "    mbarrier.arrive(v_empty.index(before), count=1)\n"
S_WAIT = "    s = warpgroup_mma_wait(1, deps=[s])\n"
O_WAIT = "    o, weights, w, factor = warpgroup_mma_wait(0, deps=[o, weights, w, factor])\n"
EMPTY = "    mbarrier.wait(empty.index(place), parity ^ 1)\n"
OUT = "    tma.async_copy_shared_to_global("
BYTES = "ready.index(place), desc.block_type.nbytes"
MINE = "    mine = first_query + CONSUMER * ROWS\n"
OWN_TILES = "    num_tiles, _ = tile_bounds(mine, ROWS, stop, shift, BLOCK_N, CAUSAL)\n"
FULL = "tile_bounds(mine, ROWS, stop"
RESCALE = "in_registers(BLOCK_D)), assert_trivial=True)[:, None]\n    return"

# name: the right text, the fault, the check that finds it, what it raises
FAULTS = {
    # waits that are missing or of the wrong phase
    "queries-not-awaited": ("    mbarrier.wait(q_ready.index(CONSUMER), 0)\n", "", full, RIGHT),
    "other-consumers-queries-awaited": ("q_ready.index(CONSUMER), 0)", "q_ready.index(1 - CONSUMER), 0)", full, RIGHT),
    "first-keys-not-awaited": ("    mbarrier.wait(k_ready.index(0), 0)\n", "", full, RIGHT),
    "second-keys-not-awaited": ("(1 // STAGES) & 1, pred=num_tiles > 1", "1", full, RIGHT),
    "keys-not-awaited": (K_WAIT, "", full, RIGHT),
    "values-not-awaited": (V_WAIT, "", full, RIGHT),
    "last-values-not-awaited": ("(last // STAGES) & 1)", "(last // STAGES) & 1, pred=False)", full, RIGHT),
    "keys-of-the-wrong-phase": (K_WAIT, K_WAIT.replace("& 1", "& 1 ^ 1"), full, RIGHT),
    "values-of-the-wrong-phase": (V_WAIT, V_WAIT.replace("& 1", "& 1 ^ 1"), full, RIGHT),
    "awaits-keys-that-never-come": (K_WAIT, K_WAIT.replace(", pred=n + 1 < num_tiles", ""), full, Deadlock),
    "producer-does-not-wait": (EMPTY, "", full, RIGHT),
    "producer-awaits-the-wrong-phase": (EMPTY, EMPTY.replace("parity ^ 1", "parity"), full, Deadlock),
    "scores-not-awaited": (S_WAIT, S_WAIT.replace("1, deps", "2, deps"), full, Hazard),
    "product-not-awaited": (O_WAIT, O_WAIT.replace("(0, ", "(1, "), full, Hazard),
    "copy-out-not-awaited": ("    tma.store_wait(0)\n", "", full, Hazard),
    "no-fence-before-the-copy-out": ("    fence_async_shared()\n" + OUT, OUT, full, Hazard),
    # places that are given back at the wrong time, or never
    "keys-given-back-early": (S_WAIT + K_BACK, K_BACK + S_WAIT, full, RIGHT),
    "values-given-back-early": (O_WAIT + V_BACK, V_BACK + O_WAIT, full, RIGHT),
    "keys-never-given-back": (S_WAIT + K_BACK, S_WAIT, full, Deadlock),
    "values-never-given-back": (V_BACK, "", full, Deadlock),
    "keys-given-back-twice": (S_WAIT + K_BACK, S_WAIT + K_BACK + K_BACK, full, RIGHT),
    "first-keys-never-given-back": ("    mbarrier.arrive(k_empty.index(0), count=1)\n", "", full, Deadlock),
    "one-consumer-is-enough": ("v_empty.index(place), count=2", "v_empty.index(place), count=1", full, RIGHT),
    "as-many-arrivals-as-threads": ("k_empty.index(place), count=2", "k_empty.index(place), count=256", full, Deadlock),
    "too-few-bytes-announced": (BYTES, BYTES + " // 2", full, RIGHT),
    "consumers-walk-different-numbers-of-tiles": (MINE, MINE + OWN_TILES, causal, RIGHT),
    "turn-not-passed-on": ("mbarrier.arrive(turn.index(1 - CONSUMER), count=1)", "turn.index(0)", full, Deadlock),
    "turn-kept": ("turn.index(1 - CONSUMER), count", "turn.index(CONSUMER), count", full, RIGHT),
    "second-consumer-has-the-first-turn-too": ("(n + CONSUMER) & 1", "(n + 1) & 1", full, Deadlock),
    # numbers
    "values-of-another-tile": ("v = v_tiles.index(before)", "v = v_tiles.index(place)", full, RIGHT),
    "queries-of-the-other-consumer": ("q = q_tiles.index(CONSUMER)", "q = q_tiles.index(1 - CONSUMER)", full, RIGHT),
    "missing-edge-mask": ("seen = j < stop\n", "seen = j < stop + BLOCK_N\n", full, RIGHT),
    "causal-one-off": ("j <= i[:, None] + shift", "j < i[:, None] + shift", causal, RIGHT),
    "unmasked-diagonal": ("num_masked = gl.maximum(num_tiles - num_full, 1)", "num_masked = 1", causal, RIGHT),
    "masks-of-the-first-consumer": (FULL, FULL.replace("mine", "mine + ROWS"), causal, RIGHT),
    "skipped-tile": ("first + rows + shift, 0)", "first + shift, 0)", causal, RIGHT),
    "stale-maximum": ("w = w * factor +", "w = w +", full, RIGHT),
    "stale-output": (RESCALE, RESCALE.replace("[:, None]", "[:, None] * 0.0 + o"), full, RIGHT),
    "wrong-head": ("head // group", "head % (num_heads // group)", grouped, RIGHT),
    "wrong-batch": ("[batch, (num_tiles", "[0, (num_tiles", grouped, RIGHT),
    "empty-row-is-nan": ("factor = 1.0 / gl.where(empty, 1.0, w)", "factor = 1.0 / w", empty_row, RIGHT),
    "empty-row-counts": ('gl.where(m_new == float("-inf"), 0.0, m_new)', "m_new", empty_row, RIGHT),
    "empty-row-has-no-infinity": ('gl.where(empty, float("inf"), m +', "gl.where(empty, 0.0, m +", empty_row, RIGHT),
    "padding-is-seen": ("    if key_stop_ptr is not None:\n", "    if key_stop_ptr is None:\n", padded, RIGHT),
}


def loaded(monkeypatch, tmp_path, source):
    """The kernel of a module made of other text."""
    path = tmp_path / "hopper.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("faulty_hopper", path)
    faulty = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "faulty_hopper", faulty)
    spec.loader.exec_module(faulty)
    return faulty._attention_forward_hopper_kernel


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault, monkeypatch, tmp_path):
    right, wrong, check, raised = FAULTS[fault]
    source = Path(hopper.__file__).read_text()
    assert right in source, "the kernel has changed: bring the fault up to date"
    kernel = loaded(monkeypatch, tmp_path, source.replace(right, wrong))
    with pytest.raises(raised):
        check(monkeypatch, kernel)


@pytest.mark.parametrize("check", [full, causal, grouped, empty_row, padded], ids=lambda check: check.__name__)
def test_a_file_without_a_fault_passes(check, monkeypatch, tmp_path):
    check(monkeypatch, loaded(monkeypatch, tmp_path, Path(hopper.__file__).read_text()))
