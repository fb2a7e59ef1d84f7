"""Is each op's default on a CPU the fastest way to compute it there? python -m benchmarks.cpu_defaults [--quick].

The default is the `torch` backend. Beside it, forward and backward, in turn: the reference, PyTorch's own function
where there is one, other compositions that could stand in its place, and what torch.compile makes of it. Sizes are
those of a step of the small recipes, in the dtype and with the memory settings that they train with here; the first
one's in float32 too. A provider is checked against float64 before it is timed, by the same code as in `python -m
benchmarks --only ops`.

CPU_DEFAULTS.json has every sample, CPU_DEFAULTS.md the verdict.

Read next: `cpu_formulations.py`, the compositions that are tried here alone; then `timing.py`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kept import made_on, write
from benchmarks.machine import header
from benchmarks.parser import Parser

if TYPE_CHECKING:
    import torch

    from benchmarks.ops.registration import OpBenchmark

RECIPES = ("shakespeare-char-small", "mlm-small", "shakespeare-char")
COMPILED_AT = "mlm-small"  # the one recipe at whose sizes torch.compile takes part: it compiles for seconds a case
CHARACTERS = 65  # of tinyshakespeare, the vocabulary of the recipes that have letters for tokens
TOLD_APART = 1.15  # times as long, in three of four rounds: less is what a machine does by itself


@dataclass(frozen=True, kw_only=True)
class Effort:
    """rounds: samples a provider; seconds: after which a case starts no further round; compiles: with torch.compile."""

    rounds: int
    seconds: float
    compiles: bool


EFFORTS = {False: Effort(rounds=25, seconds=1.5, compiles=True), True: Effort(rounds=7, seconds=0.5, compiles=False)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at the sizes of one recipe, in one dtype."""

    benchmark: OpBenchmark
    recipe: str
    dims: Mapping[str, int]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One provider of one case. samples: seconds a call, one number a round; providers took turns in each round.

    candidate: whether it could be the default: it gives the same numbers in the same dtype, needs no compiler and holds
        no full logits.
    reason: why there are no samples, else empty.
    """

    op: str
    recipe: str
    dtype: str
    dims: Mapping[str, int]
    provider: str
    candidate: bool
    samples: Sequence[float]
    reason: str = ""


def sizes(recipe: str) -> dict[str, dict[str, int]]:
    """Return the sizes of a recipe's ops by the letters of `benchmarks/ops`: of a step in general, and of three kinds.

    ""         R = N = B T rows of width C, B T S H Hkv D of attention, V classes
    "hidden"   C is the width between the two products of a feed-forward layer
    "loss"     R is the number of scored tokens: all, or the masked share
    """
    from minillm.config import build, read_toml
    from minillm.pretrain_config import PretrainConfig

    path = Path(__file__).parent / f"recipes/{recipe}.toml"
    config: PretrainConfig = build(PretrainConfig, read_toml(path), source=str(path))
    model, B, T = config.model, config.train.micro_batch_size or config.train.batch_size, config.model.context
    V = CHARACTERS if config.tokenizer.kind == "char" else config.tokenizer.vocab_size
    share = config.objective.rate if config.objective.name == "masked_lm" else 1.0
    step = {"B": B, "T": T, "S": T, "R": B * T, "N": B * T, "C": model.width, "V": V}
    step |= {"H": model.num_heads, "Hkv": model.kv_heads, "D": model.head_dim}
    return {"": step, "hidden": step | {"C": model.hidden}, "loss": step | {"R": round(share * B * T)}}


def cases(ops: Sequence[str] | None = None) -> Iterator[Case]:
    """Yield all that is measured, op by op."""
    import torch

    from benchmarks.cpu_formulations import FORMULATIONS, KINDS
    from minillm.training.precision import choose_compute_dtype

    of = {recipe: sizes(recipe) for recipe in RECIPES}
    for name, benchmark in FORMULATIONS.items():
        if ops is not None and name not in ops:
            continue
        for recipe in RECIPES:
            known = of[recipe][KINDS.get(name, "")]
            dims = {letter: known[letter] for letter in benchmark.shapes["cpu"][0].dims}
            own = choose_compute_dtype("auto", torch.device("cpu"), width=of[recipe][""]["C"]).dtype
            for dtype in dict.fromkeys((torch.float32, own) if recipe == RECIPES[0] else (own,)):
                yield Case(benchmark=benchmark, recipe=recipe, dims=dims, dtype=dtype)


def measure(case: Case, effort: Effort) -> list[Measured]:
    """Return what was measured of every provider of a case that is not for GPUs alone."""
    import torch

    from benchmarks.check import Oracle
    from benchmarks.cpu_formulations import HOLD_LOGITS
    from benchmarks.measure import calls_of
    from benchmarks.ops.registration import in_tuple
    from benchmarks.timing import Call, Times, copies_for, first_line, interleaved

    torch.compiler.reset()  # compiled code is remembered by function: many sizes would end in eager
    benchmark, dims, device = case.benchmark, case.dims, torch.device("cpu")
    copies = copies_for(0, device)
    oracle = Oracle(benchmark, dims, case.dtype, device)
    call_of = calls_of(benchmark, dims, case.dtype, device, "forward+backward", copies)
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    dtypes: dict[str, list[torch.dtype]] = {}  # of what a provider answers
    compiles = effort.compiles and case.recipe == COMPILED_AT
    for name in benchmark.providers():
        if name == "fused" or (name == "torch.compile" and not compiles):
            continue
        try:
            run = benchmark.provider(name, dims, device)
            error = None if name in benchmark.unchecked else oracle.error(run, "forward+backward")
        except Exception as raised:  # whatever keeps a stranger's code from running is its result
            reasons[name] = first_line(raised)
            continue
        if error is not None and not error.passes:
            reasons[name] = error.told
            continue
        calls[name] = call_of(run)
        dtypes[name] = [y.dtype for y in in_tuple(run(oracle.tensors))]
    times = interleaved(calls, copies=copies, device=device, rounds=effort.rounds, seconds=effort.seconds)
    reasons |= {name: first_line(found) for name, found in times.items() if isinstance(found, Exception)}
    no_candidate = {"torch.compile", *benchmark.unchecked, *HOLD_LOGITS.get(benchmark.name, ())}
    no_candidate |= {name for name in dtypes if dtypes[name] != dtypes.get("torch")}
    return [
        Measured(
            op=benchmark.name,
            recipe=case.recipe,
            dtype=str(case.dtype).removeprefix("torch."),
            dims=dict(dims),
            provider=name,
            candidate=name not in no_candidate and name not in reasons,
            samples=found.samples if isinstance(found := times.get(name), Times) else (),
            reason=reasons.get(name, ""),
        )
        for name in ("torch", *(name for name in [*calls, *reasons] if name != "torch"))
        if not reasons.get(name, "").endswith("needs a GPU")
    ]


def ratios(ours: Measured, other: Measured) -> tuple[float, float]:
    """Return how many times as long ours takes as the other, round by round: the median and the lower quartile."""
    low, middle, _ = quartiles([a / b for a, b in zip(ours.samples, other.samples, strict=True)])
    return middle, low


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of three values or more."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def rival(group: Sequence[Measured]) -> Measured | None:
    """Return the fastest that could take the default's place in a case, whose first one is the default."""
    timed = [one for one in group[1:] if one.candidate and group[0].samples]
    return max(timed, key=lambda one: ratios(group[0], one)[0], default=None)


def slower(group: Sequence[Measured]) -> bool:
    """Return whether the default of a case is slower than another candidate, by more than chance: see `TOLD_APART`."""
    best = rival(group)
    return best is not None and ratios(group[0], best)[1] > TOLD_APART


def grouped(runs: Sequence[Measured]) -> list[list[Measured]]:
    """Return the providers of each case together, in the order of measurement."""
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for run in runs:
        groups.setdefault((run.op, run.recipe, run.dtype), []).append(run)
    return list(groups.values())


def page(runs: Sequence[Measured], head: Mapping[str, Any]) -> str:
    """Return the table of all cases, what it says, and who else was there."""
    groups = grouped(runs)
    lines = [
        "# The default of each op on a CPU, beside other ways to compute it\n",
        f"{made_on(head)} `python -m benchmarks.cpu_defaults` made this page.\n",
        "Milliseconds forward and backward: medians with quartiles. Samples were taken in turn, and ratios are medians",
        "of those of each round. *Fastest other*: of those that could be the default, as they give the same numbers in",
        "the same dtype, need no compiler and hold no full logits. *Compiled*: by torch.compile, at the sizes of",
        f"{COMPILED_AT}. A call of an op looks at its arguments first, which is 0.01 ms of its time.\n",
        "| op | sizes of | dtype | the default | fastest other | | default / other | compiled |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for group in groups:
        best = rival(group)
        compiled = next((one for one in group if one.provider == "torch.compile"), None)
        ratio = "" if best is None else f"{ratios(group[0], best)[0]:.2f}"
        cells = [*labels(group[0]), milliseconds(group[0]), best.provider if best else "", milliseconds(best)]
        cells += [f"**{ratio}**" if slower(group) else ratio, milliseconds(compiled)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", verdict(groups)]
    others = [(group[0], one) for group in groups for one in group if one.samples and not one.candidate]
    others = [(ours, one) for ours, one in others if one.provider != "torch.compile"]
    if others:
        why = "They draw other random numbers than the op does, hold all logits at once, or answer in another dtype.\n"
        lines += ["\n## No candidates\n", why]
        lines += ["| op | sizes of | dtype | | ms | default / it |", "|---|---|---|---|---:|---:|"]
    for ours, one in others:
        cells = [*labels(one), one.provider, milliseconds(one), f"{ratios(ours, one)[0]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    gone = dict.fromkeys(f"- {', '.join(labels(one))}, {one.provider}: {one.reason}" for one in runs if one.reason)
    return "\n".join([*lines, *(["\n## Not timed\n", *gone] if gone else [])]) + "\n"


def labels(one: Measured) -> tuple[str, str, str]:
    return one.op, one.recipe, one.dtype


def verdict(groups: Sequence[Sequence[Measured]]) -> str:
    """Return in words in how many cases nothing is faster than the default, and what is in the others."""
    behind = [group for group in groups if slower(group)]
    line = f"In {len(groups) - len(behind)} of {len(groups)} cases no other is faster"
    line += f" by {100 * (TOLD_APART - 1):.0f} % or more in three of four rounds."
    names = [f"{', '.join(labels(group[0]))}: {best.provider}" for group in behind if (best := rival(group))]
    return f"{line} Faster are: {'; '.join(names)}." if names else line


def milliseconds(one: Measured | None) -> str:
    """Return a median with its quartiles, in milliseconds; empty where there are none.

    >>> one = Measured(op="relu", recipe="", dtype="", dims={}, provider="", candidate=True, samples=[1e-3, 2e-3, 3e-3])
    >>> milliseconds(one)
    '2 (1.5-2.5)'
    """
    if one is None or not one.samples:
        return ""
    low, middle, high = (f"{1e3 * seconds:.3g}" for seconds in quartiles(one.samples))
    return f"{middle} ({low}-{high})"


def measured(ops: Sequence[str] | None, quick: bool, say: Callable[[str], None]) -> list[Measured]:
    """Measure all cases; of each op the first one alone where it has to be quick."""
    found: list[Measured] = []
    for case in cases(ops):
        if quick and any(one.op == case.benchmark.name for one in found):
            continue
        group = measure(case, EFFORTS[quick])
        found += group
        best = rival(group)
        beside = f", {best.provider} {milliseconds(best)}" if best else ""
        say(f"{', '.join(labels(group[0]))}: {milliseconds(group[0])} ms{beside}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page and return the exit status."""
    from benchmarks.cpu_formulations import FORMULATIONS
    from minillm.training.host_memory import keep_freed_memory

    parser = Parser("benchmarks.cpu_defaults", __doc__)
    parser.add_argument("--quick", action="store_true", help="one case of each op, few rounds, no torch.compile")
    parser.add_argument("--ops", nargs="+", choices=FORMULATIONS, metavar="OP", help="these alone (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where CPU_DEFAULTS.json and .md go")
    given = parser.parse_args(argv)
    parser.folder("--out", given.out)
    keep_freed_memory()  # as training does
    start = time.monotonic()
    runs = measured(
        given.ops, given.quick, lambda text: print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr)
    )
    head, path = header(), given.out / "CPU_DEFAULTS.json"
    head |= {"device": head["processor"], "kind": "cpu"}
    write(path, {"header": head, "quick": given.quick}, runs, page(runs, head))
    print(path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
