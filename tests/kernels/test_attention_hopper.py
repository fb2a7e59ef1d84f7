"""Attention's kernel for Hopper GPUs: right numbers in any order of things, and machine code that overlaps them.

On a CPU it runs in `gluon_emulator.py`, float16 and bfloat16 alike; with a GPU of compute capability 9.0 compiled too.
"""

import os
import re
import subprocess
import sys

import minillm_kernels as mk
import pytest
import torch
from attention_cases import assert_close_to_truth, inputs, numbers
from gluon_emulator import Emulated
from hopper_cases import KERNEL, ON_GPU, assert_right, attend, masks_of
from minillm_kernels import compile_report
from minillm_kernels.attention import fused, hopper, hopper_launcher, variants

each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
everywhere = pytest.mark.parametrize("where", ["emulated"] + ["compiled"] * ON_GPU)
LAUNCHES = {"table": None, "32x2": (32, 2, True), "32x3": (32, 3, False), "32x1": (32, 1, True), "64x4": (64, 4, True)}


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


SHAPES = {  # B, T, S, H, Hkv, D
    "one": (1, 1, 1, 1, 1, 8),
    "below-a-tile": (2, 5, 7, 2, 1, 64),
    "a-tile": (1, 128, 128, 1, 1, 64),
    "ragged": (1, 201, 201, 2, 2, 64),
    "fewer-queries": (1, 70, 330, 1, 1, 128),
    "fewer-keys": (1, 270, 75, 1, 1, 16),
    "grouped": (2, 131, 100, 4, 2, 32),
    "one-key-head": (1, 65, 140, 3, 1, 24),
    "padded-to-128": (1, 129, 97, 1, 1, 80),
    "nearly-128": (1, 66, 160, 2, 1, 120),
}
MASKS = {"full": {}, "causal": {"causal": True}}


@everywhere
@each_dtype
@pytest.mark.parametrize("o", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_as_close_to_truth_as_reference(shape, o, dtype, where, monkeypatch):
    tensors, _ = inputs(shape, dtype)
    assert_right(attend(monkeypatch, tensors, o, where), tensors, o)


@everywhere
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
@pytest.mark.parametrize("o", MASKS.values(), ids=MASKS)
def test_any_number_of_keys_and_places(o, launch, where, monkeypatch):
    """As many tiles as there are places, one more, one less, and their multiples."""
    for S in (31, 32, 33, 64, 96, 128, 161, 256):
        tensors, _ = inputs((1, 150, S, 1, 1, 16), torch.float16)
        assert_right(attend(monkeypatch, tensors, o, where, launch), tensors, o)


@pytest.mark.parametrize("late", [True, False], ids=["late-copies", "any-copies"])
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_any_order_gives_the_same_bits(launch, late, monkeypatch):
    tensors, _ = inputs((1, 150, 290, 1, 1, 32), torch.float16)
    first = attend(monkeypatch, tensors, {"causal": True}, launch=launch)
    assert_right(first, tensors, {"causal": True})
    for seed in range(1, 25):
        again = attend(monkeypatch, tensors, {"causal": True}, launch=launch, seed=seed, late=late)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_stop_beyond_the_keys_is_their_end(monkeypatch):
    """2^63 - 1 for `no bound`, and what is negative in 32 bits."""
    tensors, _ = inputs((2, 70, 40, 1, 1, 16), torch.float16)
    beyond, end = (attend(monkeypatch, tensors, {"key_stop": numbers(*n)}) for n in ((2**63 - 1, 2**31), (40, 40)))
    assert all(torch.equal(x, y) for x, y in zip(beyond, end, strict=True))


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU of compute capability 9.0")
@each_dtype
@pytest.mark.parametrize("D", [64, 128])
def test_bits_are_equal_on_repeat(D, dtype, monkeypatch):
    """Many programs at once, as one would see of a race."""
    tensors, _ = inputs((4, 1000, 1000, 8, 4, D), dtype)
    first, *others = (attend(monkeypatch, tensors, {"causal": True}, "compiled") for _ in range(20))
    for again in others:
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@everywhere
@pytest.mark.parametrize("o", MASKS.values(), ids=MASKS)
def test_padding_on_the_right(o, where, monkeypatch):
    o = {**o, "key_stop": numbers(150, 0, 64, 33)}
    tensors, _ = inputs((4, 140, 150, 1, 1, 16), torch.float16)
    for launch in (None, (32, 2, True)):
        assert_right(attend(monkeypatch, tensors, o, where, launch), tensors, o)


@everywhere
def test_query_that_sees_nothing_gets_zeros_and_infinity(where, monkeypatch):
    tensors, _ = inputs((1, 300, 20, 1, 1, 16), torch.float16)
    y, lse = attend(monkeypatch, tensors, {"causal": True}, where, (32, 2, True))
    assert (y[0, :280] == 0).all() and (lse[0, 0, :280] == torch.inf).all()
    assert (y[0, 280:] != 0).any() and lse[0, 0, 280:].isfinite().all()


def strided(kind, shape, dtype):
    """q, k, v that do not lie without gaps."""
    B, T, _, H, _, D = shape
    source = torch.Generator().manual_seed(0)
    if kind == "packed-qkv":
        return list(torch.randn(B, T, 3, H, D, generator=source).to(dtype).unbind(2))
    if kind == "heads-first":
        return [torch.randn(B, H, T, D, generator=source).to(dtype).transpose(1, 2) for _ in "qkv"]
    if kind == "slices-of-wider-rows":
        return [torch.randn(B, T, H, D + 16, generator=source).to(dtype)[..., 8 : 8 + D] for _ in "qkv"]
    return [torch.randn(T, B, H, D, generator=source).to(dtype).transpose(0, 1) for _ in "qkv"]


@everywhere
@pytest.mark.parametrize("kind", ["packed-qkv", "heads-first", "slices-of-wider-rows", "time-first"])
def test_strides_are_those_of_the_tensor(kind, where, monkeypatch):
    tensors = strided(kind, (2, 140, 140, 2, 2, 40), torch.float16)
    assert not any(x.is_contiguous() for x in tensors)
    assert not any(hopper_launcher._layout_obstacle(x) for x in tensors)
    assert_right(attend(monkeypatch, tensors, {"causal": True}, where, (32, 2, True)), tensors, {"causal": True})


@everywhere
def test_nothing_is_read_of_another_row_or_head(where, monkeypatch):
    tensors, _ = inputs((3, 70, 70, 3, 3, 40), torch.float16)
    q, k, v = (x.detach() for x in tensors)
    alone = attend(monkeypatch, [x[1:2, :, 1:2] for x in (q, k, v)], {}, where)
    for x in (q, k, v):
        around = x.clone()
        x.fill_(torch.nan)
        x[1, :, 1] = around[1, :, 1]
    y, lse = attend(monkeypatch, [q, k, v], {}, where)
    assert torch.equal(y[1, :, 1], alone[0][0, :, 0]) and torch.equal(lse[1, 1], alone[1][0, 0])


@everywhere
def test_scores_far_apart_do_not_overflow(where, monkeypatch):
    (q, k, v), _ = inputs((1, 130, 130, 1, 1, 16), torch.float16)
    tensors = [q * 100, k * 5, v]
    y, lse = attend(monkeypatch, tensors, {"causal": True}, where, (32, 2, True))
    assert y.isfinite().all() and lse.isfinite().all()
    assert_right((y, lse), tensors, {"causal": True})


# --- as a part of attention ---


@pytest.fixture
def asked(monkeypatch):
    """The kernel is asked for, and on a CPU emulated; returns the calls that it served."""
    served = []
    forward = hopper_launcher.forward
    monkeypatch.setattr(hopper_launcher, "forward", lambda *a: (served.append(a), forward(*a))[1])
    if not ON_GPU:
        monkeypatch.setattr(hopper_launcher, "device_obstacle", lambda device: "")
        monkeypatch.setattr(hopper, "_attention_forward_hopper_kernel", Emulated(KERNEL))
    with hopper_launcher.asking():
        yield served


needs_kernels = pytest.mark.skipif(
    torch.cuda.is_available() and not ON_GPU, reason="a GPU of another kind: the emulator takes tensors of a CPU"
)


@needs_kernels
@pytest.mark.parametrize("o", [{}, {"causal": True}, {"causal": True, "key_stop": numbers(20, 0)}], ids=str)
def test_the_backward_pass_takes_its_y_and_lse(o, asked):
    tensors, dy = inputs((2, 37, 29, 2, 1, 16), torch.float16)
    assert_close_to_truth("fused", tensors, dy, o)
    assert len(asked) == 1


@needs_kernels
@pytest.mark.parametrize(
    "o",
    [{"softcap": 2.0}, {"causal": True, "window": (3, 0)}, {"dropout_p": 0.1, "seed": 1}, {"key_start": numbers(1, 2)}],
    ids=lambda o: next(iter(o)),
)
def test_other_calls_go_on_to_the_other_kernel(o, asked):
    tensors, dy = inputs((2, 20, 20, 1, 1, 16), torch.float16)
    assert_close_to_truth("fused", tensors, dy, o)
    assert not asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the benchmark itself does this")
def test_benchmark_gives_its_name_to_no_other_kernel(monkeypatch):
    from benchmarks.ops.attention import ATTENTION, HOPPER
    from benchmarks.ops.registration import Unavailable

    dims = {"B": 1, "T": 20, "S": 20, "H": 2, "Hkv": 1, "D": 16}
    here = torch.device("cpu")
    with pytest.raises(Unavailable, match="needs a GPU"):
        ATTENTION[0].provider(HOPPER, dims, here)
    served = []
    forward = hopper_launcher.forward
    monkeypatch.setattr(hopper_launcher, "forward", lambda *a: (served.append(a), forward(*a))[1])
    monkeypatch.setattr(hopper_launcher, "device_obstacle", lambda device: "")
    monkeypatch.setattr(hopper, "_attention_forward_hopper_kernel", Emulated(KERNEL))
    (q, k, v), _ = inputs((1, 20, 20, 2, 1, 16), torch.float16, requires_grad=False)
    run = ATTENTION[0].provider(HOPPER, dims, here)
    with mk.backend("reference"):
        expected = mk.attention(q, k, v, causal=True)
    torch.testing.assert_close(run({"q": q, "k": k, "v": v}), expected, rtol=0, atol=2e-3)
    assert len(served) == 1
    with pytest.raises(Unavailable, match="needs float16"):
        run({"q": q.float(), "k": k.float(), "v": v.float()})


def test_nothing_changes_where_nobody_asks(monkeypatch):
    monkeypatch.setattr(hopper_launcher, "device_obstacle", lambda device: "")
    monkeypatch.setattr(hopper_launcher, "forward", lambda *a: pytest.fail("it was not asked for"))
    q = torch.zeros(1, 3, 1, 16, dtype=torch.float16, device="cuda" if torch.cuda.is_available() else "cpu")
    with mk.backend("fused"):
        mk.attention(q, q, q)


def test_environment_asks():
    code = "from minillm_kernels.attention import hopper_launcher; print(hopper_launcher._asked)"
    environment = {**os.environ, "PYTHONPATH": str(compile_report.FOLDER), "MINILLM_HOPPER": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["True"]


def test_gluon_that_lacks_something_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "minillm_kernels.attention.hopper", None)
    monkeypatch.delattr(sys.modules["minillm_kernels.attention"], "hopper")
    hopper_launcher._kernel.cache_clear()
    try:
        module, reason = hopper_launcher._kernel()
    finally:
        hopper_launcher._kernel.cache_clear()
    assert module is None and "Gluon does not have" in reason


def tensor(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


Q = tensor(2, 6, 2, 16)
ONE = Q[:1, :, :1].as_strided((1, 6, 1, 16), (3, 32, 5, 1))  # strides that are not legal where they do not matter
OBSTACLES = {
    "none": ((Q, Q, Q), {}, {}, ""),
    "causal": ((Q, Q, Q), {"causal": True}, {}, ""),
    "right-0": ((Q, Q, Q), {"window": (None, 0)}, {}, ""),
    "wide-window": ((Q, Q, Q), {"window": (12, 40)}, {}, ""),
    "axis-of-one": ((ONE, ONE, ONE), {}, {}, ""),
    "window": ((Q, Q, Q), {"window": (2, 0)}, {}, "takes no mask but causal and key_stop"),
    "right-1": ((Q, Q, Q), {"window": (None, 1)}, {}, "takes no mask but causal and key_stop"),
    "key-start": ((Q, Q, Q), {"key_start": numbers(0, 1)}, {}, "takes no mask but causal and key_stop"),
    "segments": ((Q, Q, Q), {"segments": torch.zeros(2, 6, dtype=torch.int64)}, {}, "takes no mask but"),
    "prefix": ((Q, Q, Q), {"prefix": numbers(0, 1)}, {}, "takes no mask but"),
    "packed": ((Q, Q, Q), {"cu_seqlens_q": numbers(0, 1)}, {}, "takes no mask but"),
    "alibi": ((Q, Q, Q), {}, {"alibi_slopes": torch.ones(2)}, "takes neither alibi"),
    "bias": ((Q, Q, Q), {}, {"bias": torch.ones(1, 1, 6, 6)}, "takes neither alibi"),
    "softcap": ((Q, Q, Q), {}, {"softcap": 1.0}, "takes neither alibi"),
    "dropout": ((Q, Q, Q), {}, {"dropout_p": 0.5}, "takes neither alibi"),
    "negative-scale": ((Q, Q, Q), {}, {"scale": -1.0}, "needs a scale of 1.2e-38 or more, not -1.0"),
    "vanishing-scale": ((Q, Q, Q), {}, {"scale": 1e-50}, "needs a scale of 1.2e-38 or more, not 1e-50"),
    "float32": ((Q.float(), Q.float(), Q.float()), {}, {}, "needs float16 or bfloat16, not float32"),
    "too-wide": ((tensor(1, 2, 1, 136),) * 3, {}, {}, "up to 128, not 136"),
    "odd-width": ((tensor(1, 2, 1, 12),) * 3, {}, {}, "multiple of 8 up to 128, not 12"),
    "no-key": ((Q, Q[:, :0], Q[:, :0]), {}, {}, "at least one query and one key"),
    "columns-apart": ((Q, tensor(2, 6, 16, 2).mT, Q), {}, {}, "k: needs neighbouring columns side by side"),
    "unaligned-start": ((Q, Q, tensor(2, 6, 2, 32)[..., 1:17]), {}, {}, "v: needs to start at a multiple of 16 bytes"),
    "unaligned-rows": ((tensor(2, 6, 2, 20)[..., :16], Q, Q), {}, {}, "q: needs strides that are multiples of 16"),
    "expanded": ((Q, Q[:, :1].expand(2, 6, 2, 16), Q), {}, {}, "k: needs strides that are multiples of 16"),
}


@pytest.mark.parametrize("case", OBSTACLES.values(), ids=OBSTACLES)
def test_obstacle_says_why(case, monkeypatch):
    tensors, masks, terms, expected = case
    monkeypatch.setattr(hopper_launcher, "device_obstacle", lambda device: "")
    found = hopper_launcher.obstacle(*tensors, masks_of(masks), **terms)
    assert expected in found and bool(found) == bool(expected)


def test_a_cpu_is_no_place_for_it():
    assert hopper_launcher.obstacle(Q, Q, Q, masks_of({})) == "needs a GPU"


# --- the compiled kernel ---


class Recorded:
    """Takes a launch and does nothing."""

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.grid, self.args, self.constants = grid, args, constants

        return launch


@pytest.mark.parametrize("switch", ["full", "causal", "padded causal"])
@pytest.mark.parametrize("D, dtype", [(16, torch.float16), (64, torch.bfloat16), (80, torch.float16)])
def test_what_is_compiled_on_record_is_what_a_launch_asks_for(D, dtype, switch, monkeypatch):
    """By the runtime's own reading of the arguments, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    o = {"causal": "causal" in switch, "key_stop": numbers(3, 4) if "padded" in switch else None}
    x = torch.zeros(2, 5, 3, D, dtype=dtype)
    recorded = Recorded()
    monkeypatch.setattr(hopper, "_attention_forward_hopper_kernel", recorded)
    hopper_launcher.forward(x, x, x, masks_of(o), 0.5)
    assert recorded.grid == (6,)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(KERNEL.signature, KERNEL.params, backend)
    bound, kinds, options = bind(*recorded.args, **recorded.constants)
    monkeypatch.undo()
    variant = variants.hopper_variant(dtype, D, switch)
    assert {name: kind for name, (kind, _) in zip(bound, kinds, strict=True)} == variant.signature
    assert {name: bound[name] for name, (kind, _) in zip(bound, kinds, strict=True) if kind == "constexpr"} == (
        variant.constants
    )
    assert options == {"num_warps": variant.num_warps, "maxnreg": variant.max_registers}


def touched_too_early(sass):
    """Instructions that read or write an accumulator, or write a left operand, of a product that is under way."""
    found, groups, group = [], [], []
    for line in sass.splitlines():
        parsed = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
        if parsed is None:
            continue
        opcode, operands = parsed[1], [operand.strip() for operand in parsed[2].split(",")]
        if opcode.startswith("HGMMA"):  # HGMMA.64xNx16.F32 accumulator, left operand or descriptor, ...
            accumulator = span(operands[0], int(opcode.split("x")[1]) // 2)
            group.append((accumulator, span(operands[1], 4)))
            if "gsb0" in operands:
                groups, group = [*groups, group], []
        elif opcode.startswith("WARPGROUP.DEPBAR"):
            groups = groups[max(0, len(groups) - int(operands[1], 16)) :]
        else:
            stores = opcode.startswith(("ST", "BAR", "SYNCS", "UTMA", "R2UR"))
            size = 4 if ".128" in opcode else 2 if ".64" in opcode or "WIDE" in opcode else 1
            written = set() if stores else span(operands[0], size)
            named = {int(number) for number in re.findall(r"\bR(\d+)\b", parsed[2])} | written
            if any(named & acc or written & left for one in [*groups, group] for acc, left in one):
                found.append(line)
    return found


def span(operand, size):
    """The registers of an operand; none where it is a descriptor, a predicate or the register of zeros."""
    first = re.match(r"R(\d+)\b", operand)
    return set(range(int(first[1]), int(first[1]) + size)) if first else set()


@pytest.mark.parametrize("D, switch", [(64, "causal"), (128, "causal"), (128, "padded")])
def test_machine_code_overlaps_the_softmax_with_a_product(D, switch):
    """Between the waits for the scores and for the product stand the exponentials, in each of the consumers' loops."""
    found = compile_report.machine_code_of("attention", f"forward hopper fp16 D={D} {switch}", "sm_90")
    assert " 0 bytes spill stores, 0 bytes spill loads" in found["log"]
    assert "C75" not in found["log"], "ptxas has serialised products or ignored setmaxnreg"
    words = [line.split() for line in found["sass"].splitlines()]
    waits = [(i, " ".join(w)) for i, w in enumerate(words) if "WARPGROUP.DEPBAR.LE" in w]
    overlapped = [
        (i, j) for (i, first), (j, then) in zip(waits, waits[1:], strict=False) if "0x1" in first and "0x0" in then
    ]
    assert len(overlapped) == 4  # two consumers, tiles with and without hidden pairs
    for i, j in overlapped:
        between = [word for line in words[i:j] for word in line]
        assert between.count("MUFU.EX2") >= 64  # 64 x 128 scores by 128 threads
        assert not any(word.startswith("HGMMA") for word in between)
    assert touched_too_early(found["sass"]) == []
    assert touched_too_early(found["sass"].replace("gsb0, 0x0", "gsb0, 0x2"))  # it does see them
    registers = [word for line in words if any("USETMAXREG" in w for w in line) for word in line]
    assert "0xf0" in registers and "0x18" in registers  # 240 and 24
    # no barrier is used before all threads see it made, and what is stored is seen by the copy that reads it
    ptx = found["ptx"]
    assert ptx.rindex("mbarrier.init") < ptx.index("fence.proxy.async") < ptx.index("barrier.sync")
    for before in ptx.split("cp.async.bulk.tensor.4d.global.shared")[:-1]:
        stored = before[before.rindex("stmatrix") :]
        assert stored.index("fence.proxy.async") < stored.index("bar.sync")
    # one thread arrives for its partition, once all warps of it have done what the arrival says
    arrivals = ptx.split("mbarrier.arrive.shared")[:-1]
    assert len(arrivals) == 14  # of each consumer: K_0; turn, K_n, V_(n-1) in both loops
    assert all(before.rindex("bar.sync") > before.rindex("wgmma") for before in arrivals)


def test_result_is_as_the_op_promises(monkeypatch):
    """The launcher returns what the op promises: dtypes, shapes and no gaps."""
    tensors, _ = inputs((2, 5, 7, 4, 2, 24), torch.bfloat16)
    y, lse = attend(monkeypatch, tensors, {})
    q, k, v = (x.detach() for x in tensors)
    shapes = fused.attention_forward(q, k, v, *[None] * 9, None, None, None, 0.0, 0.2)
    for ours, theirs in zip((y, lse), shapes, strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
