"""The entries of the kernels' launch tables, as knobs: where each stands, its neighbours, and the case that judges it.

attention has one table a device with a row for each kernel and an entry for each width of a head; cross_entropy has one
by the size of a row; the other ops have a few constants. A knob is turned in the module where the launcher reads it.

Read next: `explore.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import minillm_kernels as mk
import torch
from minillm_kernels.launching import WARP

from benchmarks.ops import BENCHMARKS
from benchmarks.ops.attention import sizes
from benchmarks.ops.registration import Dims, Direction, OpBenchmark, Source, Tensors

KERNELS = "kernels/minillm_kernels"
ROWS = (  # of attention's table, the most used first
    "forward",
    "dk_dv",
    "dq",
    "decode",
    "forward heavy",
    "dk_dv heavy",
    "dq heavy",
    "decode heavy",
    "dbias heavy",
    "forward float32",
    "dk_dv float32",
    "dq float32",
    "decode float32",
    "dbias float32",
)
FIRST_WIDTHS, OTHER_WIDTHS = (64, 128), (32, 256, 16)


@dataclass(frozen=True)
class Case:
    """What judges a setting: an op of the benchmark at one size, in one dtype and direction."""

    benchmark: OpBenchmark
    dims: Dims
    dtype: torch.dtype
    direction: Direction


@dataclass(frozen=True)
class Knob:
    """One entry of a launch table.

    file: where it stands. name: of the row, or of the constant. place: which entry of the row; empty for a constant.
    get, put: read it, set it. neighbours: settings one step away. written: its line as the file would have it now.
    """

    file: str
    name: str
    place: str
    case: Case
    get: Callable[[], Any]
    put: Callable[[Any], None]
    neighbours: Callable[[Any], list[Any]]
    written: Callable[[], str]

    @property
    def title(self) -> str:
        return f"{self.name}{', ' * bool(self.place)}{self.place} ({self.file.removeprefix(KERNELS + '/')})"

    @contextlib.contextmanager
    def at(self, value: Any) -> Iterator[None]:
        """Set the entry inside the block."""
        before = self.get()
        self.put(value)
        try:
            yield
        finally:
            self.put(before)


def knobs(device: torch.device, *, wide: bool) -> list[Knob]:
    """Return the knobs in the order of exploring: what a GPT-2's step spends most time in comes first.

    Args:
        wide: every row and width of attention's table; else the four most used rows at widths 64 and 128.
    """
    first = [attention_knob(row, D, device) for D in FIRST_WIDTHS for row in ROWS[:4]]
    if not wide:
        return [*first, *constants(), cross_entropy_knob()]
    more = [attention_knob(row, D, device) for row in ROWS[4:] for D in FIRST_WIDTHS]
    more += [attention_knob(row, D, device) for D in OTHER_WIDTHS for row in ROWS]
    return [*first, *constants(), cross_entropy_knob(), *more]


def attention_knob(row: str, D: int, device: torch.device) -> Knob:
    """Return one entry of attention's table, for the column of this device."""
    configs: Any = importlib.import_module("minillm_kernels.attention.configs")
    table, place = configs.TABLE[configs.device_class(device)], configs.WIDTHS.index(D)

    def put(value: Any) -> None:
        entries = list(table[row])
        entries[place] = value
        table[row] = tuple(entries)

    def near(value: Any) -> list[Any]:
        changed = configs.neighbours(value)[1:]  # the first is the entry itself
        # a decoding tile is as high as there are queries
        return [n for n in changed if n.block_m == value.block_m] if row.startswith("decode") else changed

    def written() -> str:
        entries = ", ".join(str(dataclasses.astuple(entry)) for entry in table[row])
        return f'"{row}": _row({entries}),'

    return Knob(
        f"{KERNELS}/attention/configs.py",
        f"{configs.device_class(device)}, {row}",
        f"width {D}",
        attention_case(row, D),
        lambda: table[row][place],
        put,
        near,
        written,
    )


def attention_case(row: str, D: int) -> Case:
    """Return the case for a row of attention's table: rows of 2048 tokens, or one query beside 8192 keys."""
    kernel, _, kind = row.partition(" ")
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    heads = max(1, 768 // D)
    options: dict[str, Any] = {"dropout_p": 0.1, "seed": 7} if kind == "heavy" and kernel != "dbias" else {}
    name = "attention_decode" if kernel == "decode" else "attention_causal"
    dims = sizes(16, 1, heads, D, S=8192) if kernel == "decode" else sizes(4, 2048, heads, D)
    benchmark = dataclasses.replace(BENCHMARKS[name], call=functools.partial(_attend, kernel != "decode", options))
    if kernel == "dbias":
        benchmark = dataclasses.replace(benchmark, inputs=functools.partial(_with_bias, benchmark.inputs))
    return Case(benchmark, dims, dtype, "forward" if kernel in ("forward", "decode") else "forward+backward")


def _attend(causal: bool, options: dict[str, Any], tensors: Tensors, dims: Dims) -> torch.Tensor:
    q, k, v = (tensors[name] for name in "qkv")
    return mk.attention(q, k, v, causal=causal, bias=tensors.get("bias"), **options)


def _with_bias(inputs: Callable[..., Tensors], dims: Dims, dtype: torch.dtype, source: Source) -> Tensors:
    bias = source.normal(1, dims["H"], dims["T"], dims["S"], dtype=dtype)
    return {**inputs(dims, dtype, source), "bias": bias}


TILE_THREADS = WARP, 512  # the fewest and the most
CONSTANTS: tuple[
    tuple[str, str, int, int, str, Direction], ...
] = (  # module, name, smallest and largest setting, op that judges it (and at which shape), direction
    ("row_norm", "FORWARD_TILE", 1024, 16384, "layer_norm", "forward"),
    ("row_norm", "BACKWARD_TILE", 512, 8192, "layer_norm_residual", "forward+backward"),
    ("row_norm", "THREADS_PER_SM", 384, 1536, "layer_norm_residual", "forward+backward"),
    ("row_norm", "THREADS_PER_SM_OF_SHORT", 256, 1536, "layer_norm_residual, small", "forward+backward"),
    ("row_norm", "STAGES", 1, 4, "layer_norm_residual", "forward+backward"),
    ("elementwise", "FORWARD_TILE", 512, 8192, "gelu", "forward"),
    ("elementwise", "FORWARD_TILE_WITH_DROPOUT", 512, 8192, "gelu_bias_dropout", "forward"),
    ("elementwise", "BACKWARD_TILE", 512, 8192, "gelu", "forward+backward"),
    ("elementwise", "BACKWARD_TILE_WITH_BIAS", 512, 8192, "gelu_bias_dropout", "forward+backward"),
    ("elementwise", "STAGES_WITH_BIAS", 1, 4, "gelu_bias_dropout", "forward+backward"),
    ("elementwise", "THREADS", 64, 512, "gelu", "forward+backward"),
    ("dropout.fused", "BLOCK", 256, 8192, "dropout", "forward"),
    ("rotary.fused", "TILE", 1024, 16384, "rotary", "forward"),
    ("rotary.fused", "THREADS", 64, 512, "rotary", "forward"),
    ("embedding.fused", "TILE", 512, 8192, "embedding", "forward"),
    ("embedding.fused", "SUM_TILE", 1024, 16384, "embedding", "forward+backward"),
)


def constants() -> list[Knob]:
    """Return the knobs that are a constant of a module: powers of two."""
    return [constant_knob(*entry) for entry in CONSTANTS]


def constant_knob(module: str, name: str, low: int, high: int, op: str, direction: Direction) -> Knob:
    """Return a constant as a knob; its neighbours are half of it and twice, of a tile and its threads also of both."""
    owner = importlib.import_module(f"minillm_kernels.{module}")
    op, _, size = op.partition(", ")
    shape = next(s for s in BENCHMARKS[op].shapes["cuda"] if s.name == size or not size)
    return Knob(
        f"{KERNELS}/{module.replace('.', '/')}.py",
        name,
        "",
        Case(BENCHMARKS[op], shape.dims, torch.bfloat16, direction),
        lambda: getattr(owner, name),
        lambda value: setattr(owner, name, value),
        lambda value: near_constant(value, low, high),
        lambda: f"{name} = {getattr(owner, name)}",
    )


def near_constant(value: Any, low: int, high: int) -> list[Any]:
    """Return the settings one step from that of a constant, or of the elements and threads of a tile.

    >>> near_constant(512, 512, 4096), near_constant((1024, 64, 8), 1024, 4096)
    ([1024], [(2048, 64, 8), (1024, 32, 8), (1024, 128, 8), (2048, 128, 8)])
    """
    if isinstance(value, int):
        return [n for n in (value // 2, value * 2) if low <= n <= high]
    (elements, threads, *of_wider), (least, most) = value, TILE_THREADS
    near = [(n, threads) for n in near_constant(elements, low, high)]
    near += [(elements, n) for n in near_constant(threads, least, most)]
    both = ((elements // 2, threads // 2), (elements * 2, threads * 2))  # as many elements a thread
    near += [(n, t) for n, t in both if low <= n <= high and least <= t <= most]
    return [(n, t, *of_wider) for n, t in near]


def cross_entropy_knob() -> Knob:
    """Return the entry of cross_entropy's table for 16-bit logits of large vocabularies."""
    owner: Any = importlib.import_module("minillm_kernels.cross_entropy.fused")
    elements, largest = 16, 2**31

    def put(value: Any) -> None:
        row = dict(owner.LAUNCHES[elements]) | {largest: value}
        owner.LAUNCHES = {**owner.LAUNCHES, elements: tuple(row.items())}

    def near(value: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        rows, block, warps = value
        blocks = [(rows, n, warps) for n in (block // 2, block * 2) if 1024 <= n <= 16384]
        return blocks + [(rows, block, n) for n in (warps // 2, warps * 2) if 1 <= n <= 16]

    def written() -> str:
        row = ", ".join(f"({'2**31' if n == largest else n}, {launch})" for n, launch in owner.LAUNCHES[elements])
        return f"{elements}: ({row}),"

    benchmark = BENCHMARKS["cross_entropy"]
    return Knob(
        f"{KERNELS}/cross_entropy/fused.py",
        f"LAUNCHES[{elements}]",
        "V up to 2**31",
        Case(benchmark, benchmark.shapes["cuda"][0].dims, torch.bfloat16, "forward+backward"),
        lambda: dict(owner.LAUNCHES[elements])[largest],
        put,
        near,
        written,
    )
