"""linear_cross_entropy by chunks: what is held, multiplied and waited for; none of it shows in a result."""

import importlib
import weakref
from typing import Any

import minillm_kernels as mk
import pytest
import torch
from linear_cross_entropy_cases import BACKENDS, DEVICE, DTYPES, NAME_AND_DTYPE, REDUCTIONS, tensors
from minillm_kernels.cross_entropy import targets
from minillm_kernels.linear_cross_entropy import chunks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from waiting import Waits

BUDGETS = [pytest.param(None, id="one-chunk"), pytest.param(1, id="row-by-row"), pytest.param(3000, id="few-rows")]


@pytest.mark.parametrize("name, dtype", NAME_AND_DTYPE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_budget_changes_nothing_but_rounding(outputs_and_gradients, budget, reduction, name, dtype):
    made = {key: t.to(dtype) if key == "hidden" else t for key, t in tensors((3, 7), 5, 101).items()}
    options: dict[str, Any] = {"reduction": reduction, "z_loss": 0.01, "softcap": 2.5, "label_smoothing": 0.1}
    with mk.backend(name):
        whole = outputs_and_gradients(mk.linear_cross_entropy, made, memory_budget=2**30, **options)
        found = outputs_and_gradients(mk.linear_cross_entropy, made, memory_budget=budget, **options)
    for key, t in whole.items():  # sums of 21 rows in another order, in float32 or rounded to the dtype per chunk
        allowed = 8 * torch.finfo(dtype).eps * t.abs().max()
        assert (found[key] - t).abs().max() <= allowed, key


@pytest.mark.parametrize("name", BACKENDS)
def test_ignored_rows_are_as_if_they_were_not_there(outputs_and_gradients, name):
    made = tensors((30,), 5, 101)
    kept = made["targets"] != -100
    with mk.backend(name):
        sparse = outputs_and_gradients(mk.linear_cross_entropy, made)
        dense = outputs_and_gradients(
            mk.linear_cross_entropy, made | {"hidden": made["hidden"][kept], "targets": made["targets"][kept]}
        )
    assert (sparse["dhidden"][~kept] == 0).all()
    torch.testing.assert_close(sparse | {"dhidden": sparse["dhidden"][kept]}, dense)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("count", [0, 1, 20, 30])
def test_a_known_number_of_targets_changes_no_bit(outputs_and_gradients, count, reduction, name):
    made = tensors((3, 10), 5, 101)
    made["targets"].view(-1)[:] = -100
    made["targets"].view(-1)[torch.randperm(30)[:count]] = 7
    with mk.backend(name):
        expected = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction)
        found = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction, num_targets=count)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("reduction, walks", [("sum", 1), ("none", 2)])
@pytest.mark.parametrize("every", [True, False], ids=["every-row", "some"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_known_number_of_targets_is_not_waited_for(monkeypatch, known, every, reduction, walks, name):
    made = tensors((3, 10), 5, 101)
    if every:
        made["targets"].clamp_(min=0)
    number = int((made["targets"] != -100).sum()) if known else None
    monkeypatch.setattr(targets, "looks_at", lambda kind: False)  # as on a GPU
    waits = watch_inside(monkeypatch, Waits())
    made["hidden"].requires_grad_()
    with mk.backend(name):
        mk.linear_cross_entropy(**made, reduction=reduction, num_targets=number).sum().backward()
    assert waits.found == ([] if known else ["nonzero"] * walks)


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_capturing_takes_all_rows_with_the_same_result(outputs_and_gradients, monkeypatch, name):
    """A CUDA graph cannot wait for the number of rows that count, and each replay may have another one."""
    made = tensors((30,), 5, 101)
    for reduction in ("sum", "none"):
        with mk.backend(name), monkeypatch.context() as patch:
            expected = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction)
            patch.setattr(chunks, "_captures", lambda hidden: True)
            found = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction)
        torch.testing.assert_close(found, expected)


@pytest.mark.skipif(DEVICE == "cuda", reason="there torch has the products themselves")
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name, dtype", [("fused", torch.float16), ("torch", torch.bfloat16)])
def test_products_into_float32_as_a_gpu_has_them(compare, monkeypatch, name, dtype, reduction):
    """On a CPU torch has no out_dtype: the calls that a GPU gets, answered by float32 products."""
    mm, addmm = torch.mm, torch.addmm
    seen = []

    def wide_mm(a, b, *, out_dtype=None, out=None):
        if out_dtype is None:
            return mm(a, b, out=out)
        seen.append("mm")
        assert a.dtype == b.dtype == dtype and out_dtype == torch.float32
        return mm(a.float(), b.float())

    def wide_addmm(total, a, b, *, out_dtype=None, out=None):
        if out_dtype is None:
            return addmm(total, a, b, out=out)
        seen.append("addmm")
        assert a.dtype == b.dtype == dtype and out_dtype == total.dtype == torch.float32 and out is total
        return total.add_(mm(a.float(), b.float()))

    monkeypatch.setattr(chunks, "_has_wide_product", lambda kind, dtype: True)
    monkeypatch.setattr(torch, "mm", wide_mm)
    monkeypatch.setattr(torch, "addmm", wide_addmm)
    made = {key: t.to(dtype).to(t.dtype) for key, t in tensors((9,), 5, 101).items()}
    compare(mk.linear_cross_entropy, made, dtype, ("hidden",), reduction=reduction, memory_budget=1000, name=name)
    assert {"addmm"} <= set(seen) <= {"mm", "addmm"}


def test_flops_are_those_of_the_products():
    N, C, V = 7, 5, 11
    for reduction, counted in (("sum", 3), ("none", 4)):
        made = tensors((N,), C, V, bias=False)
        with FlopCounterMode(display=False) as counter:
            loss = mk.linear_cross_entropy(
                made["hidden"].requires_grad_(), made["weight"].requires_grad_(), made["targets"], reduction=reduction
            )
            loss.sum().backward()
        assert counter.get_total_flops() == counted * 2 * N * C * V


def test_flops_are_those_of_the_targets_whose_number_is_known():
    made = tensors((7,), 5, 11, bias=False)
    with FlopCounterMode(display=False) as counter:
        mk.linear_cross_entropy(**made, num_targets=5)  # 2 of 7 are ignored
    assert counter.get_total_flops() == 2 * 5 * 5 * 11


class Watch(TorchDispatchMode):
    """Records, while on, the bytes of the largest tensor made and the rows of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.product_rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.nbytes)
        if func.overloadpacket in (torch.ops.aten.matmul, torch.ops.aten.mm, torch.ops.aten.addmm_):  # without bias
            self.product_rows.append(len(result))
        return result


def watch_inside(monkeypatch, watch):
    """Return a watch, at work from now on inside the operator, which a mode around it takes for one step."""
    inner = chunks.walk

    def watched(*args):
        with watch:
            return inner(*args)

    monkeypatch.setattr(chunks, "walk", watched)
    return watch


@pytest.fixture
def inside(monkeypatch):
    return watch_inside(monkeypatch, Watch())


class Products(TorchDispatchMode):
    """Records, while on, how far apart the rows of what a matrix product reads and writes are, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.distances |= {max(t.stride()) for t in (*args, result) if t.ndim == 2}
        return result


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("V", [1, 37, 48, 51])
def test_rows_of_products_start_at_multiples(monkeypatch, V, bias):
    """cuBLAS takes its slow products for others: a third of the speed with GPT-2's 50257 classes, and less."""
    made, watch = tensors((70,), 32, V, bias=bias), watch_inside(monkeypatch, Products())
    leaves = [made[name].requires_grad_() for name in ("hidden", "weight", "bias") if made.get(name) is not None]
    with mk.backend("fused"):
        loss = mk.linear_cross_entropy(
            made["hidden"], made["weight"], made["targets"], bias=made.get("bias"), memory_budget=64 * V * 4
        )
        gradients = torch.autograd.grad(loss, leaves)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
    assert watch.distances == {32, V + -V % chunks.ALIGNMENT}


@pytest.mark.parametrize(
    "per_chunk, sizes", [(100, [100, 100, 100]), (300, [300]), (250, [128, 128, 44]), (290, [256, 44])]
)
def test_chunks_are_of_whole_tiles_where_they_can_be(per_chunk, sizes):
    assert [c.stop - c.start for c in chunks._chunks(300, None, per_chunk)] == sizes
    assert [len(c) for c in chunks._chunks(1000, torch.arange(300), per_chunk)] == sizes


@pytest.mark.parametrize(
    "rows, sizes",
    [(1024, [512, 512]), (8192, [512] * 16), (16384, [3328] * 4 + [3072]), (65536, [4096] * 16)],
    ids=lambda value: str(value)[:5],
)
def test_gpt2_on_a_gpu_has_chunks_of_whole_tiles(rows, sizes):
    classes, dtype = chunks.padded(50257, True), torch.bfloat16
    budget = chunks.default_budget("cuda", rows, classes, 768, dtype.itemsize)
    per_chunk = chunks.rows_per_chunk(budget, classes, dtype, None, True)
    assert [c.stop - c.start for c in chunks._chunks(rows, None, per_chunk)] == sizes


@pytest.mark.parametrize("rows", [1, 100, 1000, 2458, 9830, 20_000, 100_000])
@pytest.mark.parametrize("width, classes", [(768, 30522), (4096, 32000), (4096, 128_256), (64, 512)])
def test_budget_of_a_gpu_is_the_eighth_where_there_is_one_and_never_all_logits_beyond_the_least(rows, width, classes):
    budget = chunks.default_budget("cuda", rows, classes, width, 2)
    least, most = chunks.GPU_BUDGETS
    all_logits, others = 2 * rows * classes, 6 * classes * width + 4 * rows * width
    assert least <= budget <= max(least, min(most, all_logits / 2, 4096 * 2 * classes))
    if 3 * all_logits / 8 - others >= least:  # there is room in an eighth
        assert budget + others <= 3 * all_logits / 8


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(
    "name, budget_rows", [("torch", 1), ("torch", 16), ("torch", 100), ("fused", 16), ("fused", 50)]
)
def test_it_never_holds_all_the_logits(inside, budget_rows, reduction, name):
    N, C, V = 129, 4, 512
    made = tensors((N,), C, V, bias=False)
    made["targets"] = made["targets"].clamp(min=0)
    hidden, weight = made["hidden"].requires_grad_(), made["weight"].requires_grad_()
    with Watch() as outside, mk.backend(name):
        loss = mk.linear_cross_entropy(
            hidden, weight, made["targets"], reduction=reduction, memory_budget=budget_rows * V * torch.float32.itemsize
        )
        loss.sum().backward()
    others = 4 * max(V * C, N * C)
    assert 0 < inside.largest <= max(4 * budget_rows * V, others) < 4 * N * V
    assert outside.largest <= others


class Held(TorchDispatchMode):
    """Records, while on, the most bytes that tensors above a size have held at once."""

    def __init__(self, above: int) -> None:
        super().__init__()
        self.above, self.now, self.most = above, 0, 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, torch.Tensor):
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size <= self.above or address in self.alive:
            return
        self.alive.add(address)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self.alive.discard(address)
        self.now -= size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("gradient", [False, True], ids=["losses-alone", "gradient"])
def test_a_chunk_and_what_is_made_of_it_keep_to_the_budget(gradient, softcap, dtype):
    N, C, V = 129, 4, 512
    made, budget = tensors((N,), C, V, bias=False), 100 * V * 4
    hidden, targets = made["hidden"].to(dtype), made["targets"].clamp(min=0)
    with Held(above=4 * max(V, N) * C) as held:
        options = (-100, 0.1, 0.1, softcap)
        chunks.walk(hidden, made["weight"], None, targets, options, budget, None, None, [gradient] * 3, False)
    assert budget / 2 < held.most <= budget


def test_the_default_budget_of_a_gpu_leaves_an_eighth_of_the_memory(monkeypatch):
    """Of three numbers a logit: GPT-2's 8192 tokens, each size an eighth; the kernel's work takes no memory."""
    N, C, V, dtype = 1024, 96, 6282, torch.bfloat16  # V no multiple of 16
    budget = chunks.default_budget("cuda", 8192, 50272, 768, dtype.itemsize) // 64
    skipped = lambda x, *_: (x.new_zeros(len(x), dtype=torch.float32), x)  # noqa: E731
    fused = importlib.import_module("minillm_kernels.linear_cross_entropy.fused")  # imports Triton
    monkeypatch.setattr(fused, "losses_and_dlogits", skipped)
    hidden, weight = (torch.randn(n, C, dtype=dtype, device=DEVICE).requires_grad_() for n in (N, V))
    within = watch_inside(monkeypatch, Held(above=0))
    with Held(above=0) as around, mk.backend("fused"):
        targets = torch.zeros(N, dtype=torch.int64, device=DEVICE)
        mk.linear_cross_entropy(hidden, weight, targets, reduction="mean", memory_budget=budget).backward()
    inputs = hidden.nbytes + weight.nbytes  # parts of which are taken, and so counted
    assert max(within.most - inputs, around.most) <= 3 * N * V * dtype.itemsize / 8


@pytest.mark.parametrize("name", ["torch", "fused"])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_ignored_rows_cost_no_product(inside, count, name):
    N, C, V = 200, 4, 32
    made = tensors((N,), C, V, bias=False)
    made["targets"][:] = -100
    made["targets"][torch.randperm(N)[:count]] = 3
    with mk.backend(name):
        mk.linear_cross_entropy(made["hidden"].requires_grad_(), made["weight"].requires_grad_(), made["targets"])
    assert inside.product_rows == ([count, count, V] if count else [])  # logits, dhidden, dweight


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored_gives_zero_and_zero_gradients(outputs_and_gradients, reduction, name):
    made = tensors((3, 7), 5, 11)
    made["targets"][:] = -100
    with mk.backend(name):
        found = outputs_and_gradients(mk.linear_cross_entropy, made, reduction=reduction, z_loss=0.1)
    assert {"dhidden", "dweight", "dbias"} < found.keys()
    assert all((t == 0).all() for t in found.values())


@pytest.mark.parametrize("name", ["torch", "fused"])
def test_no_grad_computes_the_loss_alone(monkeypatch, name):
    made = tensors((3, 7), 5, 11)
    wanted = []
    inner = chunks.walk
    monkeypatch.setattr(chunks, "walk", lambda *args: (wanted.append(tuple(args[-2])), inner(*args))[1])
    made["weight"].requires_grad_()
    with mk.backend(name):
        with torch.no_grad():
            loss = mk.linear_cross_entropy(**made)
        torch.testing.assert_close(loss, mk.linear_cross_entropy(**made).detach())
    assert wanted == [(False, False, False), (False, True, False)]
