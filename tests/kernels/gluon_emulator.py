"""Runs a Gluon kernel for Hopper on a CPU: the part of the language that `attention/hopper.py` uses, and no more.

Triton's interpreter does not take Gluon. Here the Python function under `gluon.jit` itself is run, with the names that
it uses replaced: a tile in registers is a torch tensor, shared memory is an array of NaN to begin with, and each
partition of `warp_specialize` is a thread. What is asynchronous on the GPU is so here, and as unkind as it may be:

    copy (TMA load)     its destination is NaN from the order on; the data are there just before its barrier hears of it
    product (wgmma)     reads its operands in shared memory when it is ordered and again when it is waited for: where
                        the two differ the result is NaN. Until then its result is no tile, and using it an error
    copy out            reads when it is waited for, and again compares
    mbarrier            phases, pending arrivals and bytes as in the PTX manual; an arrival too many is an error
    proxies             tensor cores and copies may not read what a partition stored before that one's fence

One thread runs at a time, and gives up its turn before each of these; which runs next, or which copy lands, is drawn
from a seed, with preferences that are drawn too, so that a partition may run far ahead of the others. Nothing depends
on time: where nobody can go on and no copy is under way there is a `Deadlock`, which says who waits for what.
"""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as real
from triton.runtime.jit import JITFunction


class Deadlock(AssertionError):
    """No partition can go on."""


class Hazard(AssertionError):
    """Something that the hardware leaves undefined."""


@dataclass(eq=False)
class Barrier:
    """One mbarrier: a phase ends when no arrival and no byte is outstanding."""

    name: str
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0

    def initialise(self, count: int) -> None:
        if self.count:
            raise Hazard(f"{self.name} is initialised twice")
        self.count = self.pending = count

    def arrive(self, count: int = 1, bytes: int = 0) -> None:
        if count > self.pending:
            raise Hazard(f"{self.name}: {count} arrive where {self.pending} of {self.count} are awaited")
        self.pending -= count
        self.change(bytes)

    def change(self, bytes: int) -> None:
        self.bytes += bytes
        if self.pending == 0 and self.bytes == 0:
            self.pending = self.count
            self.phase += 1

    def passed(self, parity: int) -> bool:
        """Return whether the phase before the present one had this parity; before the first one comes a phase 1."""
        if not self.count:
            raise Hazard(f"{self.name} is used before it is initialised")
        return self.phase & 1 != parity


@dataclass(eq=False)
class Shared:
    """Shared memory, or a view of it. `stored` is shared by all views: partitions that stored without a fence since."""

    name: str
    data: Any  # a tensor, or a list of barriers
    stored: set[Any] = field(default_factory=set)

    def index(self, i: int) -> Any:
        if not 0 <= i < len(self.data):
            raise Hazard(f"{self.name} has {len(self.data)} places, not one numbered {i}")
        found = self.data[i]
        return found if isinstance(found, Barrier) else Shared(f"{self.name}[{i}]", found, self.stored)

    def reshape(self, shape: Sequence[int]) -> Shared:
        return Shared(self.name, self.data.view(list(shape)), self.stored)

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.name, self.data.permute(order), self.stored)

    def store(self, tile: Tensor) -> None:
        assert tile.dtype == self.data.dtype and tile.shape == self.data.shape, f"a wrong tile is stored in {self.name}"
        self.stored.add(_Partition.current())
        self.data.copy_(tile)

    def read_by_hardware(self) -> Tensor:
        if self.stored:
            raise Hazard(f"{self.name} was stored to by a partition that had no fence since")
        return self.data.clone()


@dataclass(eq=False)
class Product:
    """The result of an asynchronous product. It has no arithmetic: it is read by waiting for it."""

    a: Any
    b: Shared
    acc: Tensor | None
    result: Tensor | None = None

    def __post_init__(self) -> None:
        self.first_read = self._read()

    def _read(self) -> tuple[Tensor, Tensor]:
        return (self.a.read_by_hardware() if isinstance(self.a, Shared) else self.a), self.b.read_by_hardware()

    def finish(self) -> None:
        a, b = self._read()
        same = _equal(a, self.first_read[0]) and _equal(b, self.first_read[1])
        self.result = a.float() @ b.float() + (0.0 if self.acc is None else self.acc)
        if not same:
            self.result.fill_(torch.nan)


@dataclass(eq=False)
class Copy:
    """A copy that is under way, from a tensor to shared memory."""

    source: Tensor
    destination: Shared
    barrier: Barrier

    def land(self) -> None:
        self.destination.data.copy_(self.source)
        self.barrier.change(-self.source.numel() * self.source.element_size())


class _Partition:
    """One partition: a thread that runs when it is told to."""

    running: _Partition | None = None

    def __init__(self, name: str, eagerness: float, body: Callable[[], None]):
        self.name, self.eagerness = name, eagerness
        self.may_go: Callable[[], bool] = lambda: True
        self.waits_for = "its start"
        self.products: list[Product] = []
        self.stores: list[tuple[Descriptor, Sequence[int], Shared, Tensor]] = []
        self.error: BaseException | None = None
        self.done = self.abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    @staticmethod
    def current() -> _Partition | None:
        return _Partition.running

    def _run(self, body: Callable[[], None]) -> None:
        self._go.acquire()
        try:
            if not self.abandoned:
                body()
                if self.products or self.stores:
                    raise Hazard(f"{self.name} ends with products or copies that it has not waited for")
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()

    def resume(self) -> None:
        before, _Partition.running = _Partition.running, self
        self._go.release()
        self._back.acquire()
        _Partition.running = before

    def abandon(self) -> None:
        self.abandoned = True
        while not self.done:
            self.resume()
        self._thread.join()

    def pause(self, may_go: Callable[[], bool], waits_for: str) -> None:
        self.may_go, self.waits_for = may_go, waits_for
        self._back.release()
        self._go.acquire()
        if self.abandoned:
            raise Hazard("abandoned")


class Descriptor:
    """A tensor descriptor in the kernel, of one that the launcher made."""

    def __init__(self, host: Any):
        self.tensor = host.base.as_strided(list(host.shape), list(host.strides))
        self.tile = list(host.block_shape)
        self.dtype, self.layout = host.base.dtype, host.layout
        size = host.base.element_size()
        for stride in host.strides[:-1]:
            assert stride * size % 16 == 0 and 0 < stride * size < 2**40, f"no legal stride: {host.strides}"
        elements = 1
        for length in self.tile:
            elements *= length
        self.block_type = types.SimpleNamespace(nbytes=elements * size, shape=self.tile)

    def inside(self, start: Sequence[int]) -> tuple[slice, ...]:
        """Return which part of the tensor a tile covers."""
        ends = [max(0, min(s + n, size)) for s, n, size in zip(start, self.tile, self.tensor.shape, strict=True)]
        return tuple(slice(max(s, 0), max(end, s, 0)) for s, end in zip(start, ends, strict=True))

    def read(self, start: Sequence[int]) -> Tensor:
        """Return a tile, 0 past the tensor's end along any axis."""
        assert min(start) >= 0
        found = self.tensor[self.inside(start)]
        tile = torch.zeros(self.tile, dtype=self.dtype)
        tile[tuple(slice(0, n) for n in found.shape)] = found
        return tile

    def write(self, start: Sequence[int], tile: Tensor) -> None:
        here = self.tensor[self.inside(start)]
        here.copy_(tile[tuple(slice(0, n) for n in here.shape)])


@dataclass(eq=False)
class Pointer:
    """A pointer, or a tile of them."""

    memory: Tensor  # flat
    offset: Any = 0

    def __add__(self, step: Any) -> Pointer:
        return Pointer(self.memory, self.offset + step)


class Emulated:
    """A kernel under `gluon.jit`, launched as `kernel[grid](...)` on CPU tensors.

    seed: of the order of things. late: copies land only when no partition can go on without them.
    """

    def __init__(self, kernel: JITFunction, seed: int = 0, late: bool = True):
        self.kernel, self.late = kernel, late
        self.random = random.Random(seed)
        self.copies: list[Copy] = []
        self.program = 0
        self.names = dict(kernel.fn.__globals__)
        replacements = {
            "gl": types.SimpleNamespace(**{n: getattr(real, n) for n in dir(real)} | self._language()),
            "mbarrier": types.SimpleNamespace(
                init=lambda barrier, count: barrier.initialise(count),
                expect=lambda barrier, bytes: self._act(lambda: barrier.arrive(bytes=bytes)),
                arrive=lambda barrier, count=1: self._act(lambda: barrier.arrive(count)),
                wait=self._wait,
                MBarrierLayout=lambda: None,
            ),
            "tma": types.SimpleNamespace(
                async_copy_global_to_shared=self._copy_in,
                async_copy_shared_to_global=self._copy_out,
                store_wait=self._wait_for_stores,
            ),
            "fence_async_shared": self._fence,
            "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait_for_products,
        }
        for name, value in list(self.names.items()):
            if isinstance(value, JITFunction):
                self.names[name] = self._python(value)
            elif isinstance(value, real.constexpr):
                self.names[name] = value.value
        self.names |= {name: new for name, new in replacements.items() if name in self.names}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
            assert num_warps == 4 and maxnreg % 8 == 0
            there = [self._argument(x) for x in args]
            for self.program in range(grid[0]):
                self.buffers: list[Shared] = []
                self._python(self.kernel)(*there, **constants)

        return run

    def _python(self, function: JITFunction) -> Callable[..., Any]:
        return types.FunctionType(function.fn.__code__, self.names, function.fn.__name__, function.fn.__defaults__)

    @staticmethod
    def _argument(x: Any) -> Any:
        if isinstance(x, Tensor):
            return Pointer(x.view(-1))
        return Descriptor(x) if hasattr(x, "block_shape") else x

    # --- partitions ---

    def _warp_specialize(self, functions: Any, worker_num_warps: Sequence[int], worker_num_regs: Sequence[int]) -> None:
        assert len(functions) == 1 + len(worker_num_warps) == 1 + len(worker_num_regs)
        assert all(24 <= n <= 256 and n % 8 == 0 for n in worker_num_regs)
        partitions = [
            _Partition(f"partition {number}", self.random.expovariate(1.0), lambda f=function, a=args: f(*a))
            for number, (function, args) in enumerate(functions)
        ]
        try:
            while waiting := [p for p in partitions if not p.done]:
                ready = [p for p in waiting if p.may_go()]
                choices: list[Any] = ready + ([] if self.late and ready else self.copies)
                if not choices:
                    raise Deadlock("; ".join(f"{p.name} waits for {p.waits_for}" for p in waiting))
                weights = [getattr(one, "eagerness", 0.3) for one in choices]
                chosen = self.random.choices(choices, weights)[0]
                if isinstance(chosen, Copy):
                    self.copies.remove(chosen)
                    chosen.land()
                    continue
                chosen.resume()
                if chosen.error is not None:
                    raise chosen.error
            if self.copies:
                raise Hazard("the program ends while copies to its shared memory are under way")
        finally:
            self.copies.clear()
            for partition in partitions:
                partition.abandon()

    def _pause(self, may_go: Callable[[], bool] = lambda: True, waits_for: str = "its turn") -> None:
        partition = _Partition.current()
        if partition is not None:
            partition.pause(may_go, waits_for)

    def _act(self, action: Callable[[], None]) -> None:
        self._pause()
        action()

    def _wait(self, barrier: Barrier, phase: int, pred: bool = True) -> None:
        if pred:
            self._pause(lambda: barrier.passed(phase), f"{barrier.name} with parity {phase}")

    # --- copies and products ---

    def _copy_in(self, descriptor: Descriptor, start: Sequence[int], barrier: Barrier, destination: Shared) -> None:
        self._pause()
        if any(copy.destination.data.data_ptr() == destination.data.data_ptr() for copy in self.copies):
            raise Hazard(f"two copies to {destination.name} are under way")
        destination.data.fill_(torch.nan)
        self.copies.append(Copy(descriptor.read(start), destination, barrier))

    def _copy_out(self, descriptor: Descriptor, start: Sequence[int], source: Shared) -> None:
        self._pause()
        _Partition.current().stores.append((descriptor, start, source, source.read_by_hardware()))

    def _wait_for_stores(self, pendings: int) -> None:
        self._pause()
        stores = _Partition.current().stores
        while len(stores) > pendings:
            descriptor, start, source, seen = stores.pop(0)
            tile = source.read_by_hardware()
            descriptor.write(start, tile if _equal(tile, seen) else torch.full_like(tile, torch.nan))

    def _fence(self) -> None:
        for buffer in self.buffers:
            buffer.stored.discard(_Partition.current())

    def _multiply(self, a: Any, b: Shared, acc: Tensor, *, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async and isinstance(acc, Tensor) and acc.dtype == torch.float32
        left = a.data if isinstance(a, Shared) else a
        assert left.shape[0] == 64 and left.dtype == b.data.dtype and acc.shape == (64, b.data.shape[1])
        self._pause()
        product = Product(a, b, acc if use_acc else None)
        _Partition.current().products.append(product)
        return product

    def _wait_for_products(self, num_outstanding: int = 0, deps: Sequence[Any] = ()) -> Any:
        self._pause()
        outstanding = _Partition.current().products
        while len(outstanding) > num_outstanding:
            outstanding.pop(0).finish()
        results = [self._result(one) if isinstance(one, Product) else one for one in deps]
        return results[0] if len(results) == 1 else tuple(results)

    @staticmethod
    def _result(product: Product) -> Tensor:
        if product.result is None:
            raise Hazard("a product is read that the wait leaves outstanding")
        return product.result

    # --- the language ---

    def _language(self) -> dict[str, Any]:
        def pairwise(of_numbers: Callable[..., Any], of_tiles: Callable[..., Tensor]) -> Callable[..., Any]:
            def apply(x: Any, y: Any) -> Any:
                if not isinstance(x, Tensor) and not isinstance(y, Tensor):
                    return of_numbers(x, y)
                return of_tiles(torch.as_tensor(x), torch.as_tensor(y))

            return apply

        dtypes = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "int32", "int64")}
        return dtypes | {
            "program_id": lambda axis: self.program,
            "static_range": range,
            "cast": lambda x, dtype: x.to(dtype) if isinstance(x, Tensor) else torch.tensor(x).to(dtype).item(),
            "arange": lambda start, end, layout: torch.arange(start, end),
            "full": lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            "convert_layout": lambda x, layout, assert_trivial=False: x,
            "maximum": pairwise(max, torch.maximum),
            "minimum": pairwise(min, torch.minimum),
            "where": torch.where,
            "max": lambda x, axis: x.amax(axis),
            "sum": lambda x, axis: x.sum(axis),
            "exp2": torch.exp2,
            "log2": torch.log2,
            "load": lambda pointer: int(pointer.memory[pointer.offset]),
            "store": _store,
            "allocate_shared_memory": self._allocate,
            "warp_specialize": self._warp_specialize,
        }

    def _allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Shared:
        name = f"buffer {len(self.buffers)}"
        if dtype == torch.int64:
            data: Any = [Barrier(f"barrier {i} of {name}") for i in range(shape[0])]
        else:
            data = torch.full(list(shape), torch.nan, dtype=dtype)
        self.buffers.append(Shared(name, data))
        return self.buffers[-1]


def _store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
    pointer.memory[pointer.offset[mask]] = value[mask]


def _equal(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.nan_to_num(1e4), y.nan_to_num(1e4)) and torch.equal(x.isnan(), y.isnan())
