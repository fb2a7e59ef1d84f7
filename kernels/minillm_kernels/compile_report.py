"""Compiles every kernel in every way its launchers can ask for, without a GPU, and writes down what came out.

    python -m minillm_kernels.compile_report [--ops rms_norm ...] [--targets sm_90 ...] [--out DIR]

writes `compile_report.json`, the record that `tests/kernels/test_compile_report.py` compares with, and
`COMPILE_REPORT.md`, the same as a table. Rows of ops and targets that were not asked for stay as they are.

Triton does not compile in a process that was started with TRITON_INTERPRET=1, so two new processes without it do the
work. What was compiled is kept in Triton's cache, and what was read from it beside it: a second run only looks up.

Read next: `machine_code.py`, for what the numbers are and the formula of the occupancy.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from minillm_kernels import dispatch, machine_code
from minillm_kernels.variant import Variant

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
FOLDER = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

# What was read goes by the text of what reads it, so that a mended parser reads again.
_RESOURCES = f"resources-{hashlib.sha256(Path(machine_code.__file__).read_bytes()).hexdigest()[:16]}.json"


@functools.cache
def variants(op: str) -> list[Variant]:
    """Return all variants of an op, of which no two for one target have one name."""
    found = list(importlib.import_module(f"minillm_kernels.{op}.fused").variants())
    names = Counter((variant.name, target) for variant in found for target in variant.targets)
    if twice := [f"{name} for {target}" for (name, target), count in names.items() if count > 1]:
        raise ValueError(f"{op}: variants must have different names, got twice: {', '.join(twice)}")
    return found


def compiled(variant: Variant, target: str, *, anew: bool = False) -> tuple[Any, str]:
    """Compile one variant for one target; return Triton's compiled kernel and what ptxas said, "" from the cache.

    Args:
        anew: whatever the cache holds.
    Raises:
        RuntimeError: this process interprets Triton's kernels, or the compiler failed; the text names the variant.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    if knobs.runtime.interpret:
        raise RuntimeError("this process interprets kernels (TRITON_INTERPRET=1); compile in one without it")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    make = GluonASTSource if variant.kernel.is_gluon() else ASTSource
    source = make(variant.kernel, dict(variant.signature), dict(variant.constants), _attributes(variant))
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if variant.max_registers is not None:
        options["maxnreg"] = variant.max_registers
    log = io.StringIO()
    try:
        with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
            knobs.nvidia.dump_ptxas_log = True  # the sizes of spills are nowhere else
            if anew:
                knobs.compilation.always_compile = True
            return triton.compile(source, target=gpu, options=options), log.getvalue()
    except Exception as error:
        raise RuntimeError(f"{variant.op}, {variant.name}, {target}: {error}") from error


def disassembled(kernel: Any) -> str:
    """Return the machine code of a compiled kernel of NVIDIA's, as text."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build(variant: Variant, target: str) -> Row:
    """Compile one variant for one target and return its row of the report.

    Raises:
        RuntimeError: as `compiled` does.
    """
    kernel, log = compiled(variant, target)
    from triton.runtime.cache import get_cache_manager

    kept = get_cache_manager(kernel.hash)
    path = kept.get_file(_RESOURCES)
    if path is None:
        backend = kernel.metadata.target.backend
        if backend == "cuda" and not log:  # compiled before, by someone else
            kernel, log = compiled(variant, target, anew=True)
        resources = _resources(kernel, backend, log)
        kept.put(json.dumps(resources), _RESOURCES, binary=False)
    else:
        resources = json.loads(Path(path).read_text())
    metadata = kernel.metadata
    row = {
        "op": variant.op,
        "variant": variant.name,
        "target": target,
        "warps": metadata.num_warps,
        "shared": metadata.shared,
        **resources,
    }
    row["resident_warps"] = machine_code.resident_warps(
        machine_code.MACHINES[target],
        row["registers"],
        row["shared"],
        row["warps"],
        getattr(metadata, "tmem_size", 0) or 0,
    )
    return row


def _attributes(variant: Variant) -> dict[tuple[int, ...], list[list[Any]]]:
    """Return which arguments are divisible by 16, as Triton's launcher says it; of a tuple that is named all are."""
    paths = [path for path in variant.aligned if isinstance(path, tuple)]
    names = {name for name in variant.aligned if isinstance(name, str)}
    if unknown := names - set(variant.signature):
        raise ValueError(f"{variant.op}, {variant.name}: aligned names no parameter: {', '.join(sorted(unknown))}")
    for name in names:
        index = variant.kernel.arg_names.index(name)
        kinds = variant.signature[name]
        if isinstance(kinds, tuple):
            paths += [(index, i) for i, kind in enumerate(kinds) if kind != "constexpr"]
        else:
            paths.append((index,))
    return {path: [["tt.divisibility", 16]] for path in sorted(paths)}


def _resources(kernel: Any, backend: str, log: str) -> dict[str, Any]:
    """Return what `machine_code` reads from a compiled kernel."""
    if backend == "hip":
        return machine_code.gcn_resources(kernel.asm["amdgcn"])
    return machine_code.ptxas_resources(log) | machine_code.sass_instructions(disassembled(kernel))


def _prepare() -> None:
    """Make a new process one that compiles; before it imports triton, which reads this once."""
    os.environ.pop("TRITON_INTERPRET", None)


def _names(op: str) -> list[tuple[str, str, bool]]:
    """Return name, target and whether it belongs on the matrix unit, for each variant of an op and its targets."""
    found = [(variant.name, target, variant.matrix_unit) for variant in variants(op) for target in variant.targets]
    return sorted(found, key=lambda one: TARGETS.index(one[1]))


def _build_named(job: tuple[str, str, str]) -> Row:
    return build(_named(*job), job[2])


def _named(op: str, name: str, target: str) -> Variant:
    return next(v for v in variants(op) if v.name == name and target in v.targets)


@contextlib.contextmanager
def compilers(count: int = 2) -> Iterator[ProcessPoolExecutor]:
    """Open that many processes that do not interpret kernels, whatever this one does."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit a triton that interprets
    with ProcessPoolExecutor(count, mp_context=context, initializer=_prepare) as pool:
        yield pool


def listed(pool: ProcessPoolExecutor, ops: Iterable[str]) -> dict[tuple[str, str, str], bool]:
    """Return (op, variant, target) -> whether it belongs on the matrix unit, of all kernels in use."""
    ops = sorted(ops, key=dispatch.OPS.index)
    return {
        (op, name, target): matrix_unit
        for op, found in zip(ops, pool.map(_names, ops), strict=True)
        for name, target, matrix_unit in found
    }


def rows(pool: ProcessPoolExecutor, jobs: Sequence[tuple[str, str, str]]) -> list[Row]:
    """Compile jobs (op, variant, target) and return their rows in the same order."""
    return list(pool.map(_build_named, jobs))


def machine_code_of(op: str, name: str, target: str) -> dict[str, str]:
    """Return what the compilers make of a variant for one of NVIDIA's targets: "log" of ptxas, "ptx" and "sass"."""
    with compilers(1) as pool:
        return pool.submit(_machine_code_of, op, name, target).result()


def _machine_code_of(op: str, name: str, target: str) -> dict[str, str]:
    kernel, log = compiled(_named(op, name, target), target, anew=True)
    return {"log": log, "ptx": kernel.asm["ptx"], "sass": disassembled(kernel)}


def complaint(row: Row, matrix_unit: bool, spill_limit: int = 0) -> str:
    """Return in words what must not be true of a kernel in use; nothing where all is well.

    Args:
        matrix_unit: whether the variant's products belong on the matrix unit.
        spill_limit: bytes a lane that it may store.
    """
    faults = []
    if row["spill_stores"] > spill_limit:
        faults.append(f"spills {row['spill_stores']} bytes a lane, at most {spill_limit} may be")
    if matrix_unit and not row["matrix"]:
        faults.append("does not use the matrix unit")
    if not row["resident_warps"]:
        faults.append(
            f"fits on no multiprocessor ({row['shared']} bytes of shared memory, {row['registers']} registers)"
        )
    return f"{row['op']}, {row['variant']}, {row['target']}: {'; '.join(faults)}" if faults else ""


def merged(record: dict[str, Any], new: list[Row], ops: Iterable[str], targets: Iterable[str]) -> list[Row]:
    """Return the new rows, and of the record those of other ops or targets; in the order of ops, variants, targets."""
    ops, targets = set(ops), set(targets)
    kept = [row for row in record.get("rows", []) if row["op"] not in ops or row["target"] not in targets]
    kept = [row for row in kept if row["op"] in dispatch.FUSED_OPS]
    place = {(row["op"], row["variant"]): i for i, row in enumerate(kept + new)}
    return sorted(
        kept + new,
        key=lambda row: (
            dispatch.OPS.index(row["op"]),
            place[row["op"], row["variant"]],
            TARGETS.index(row["target"]),
        ),
    )


def read_record(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the report in a folder: {"triton": version, "rows": [...]}; an empty dict where there is none."""
    path = folder / "compile_report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def to_json(report: dict[str, Any]) -> str:
    """Return the report as JSON with a row on each line, so that a change shows as the rows that changed."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in report["rows"])
    return f'{{"triton":{json.dumps(report["triton"])},"rows":[\n{lines}\n]}}\n'


_OPENING = """# What the kernels ask of a GPU

Made by `python -m minillm_kernels.compile_report` with Triton {triton}; do not edit. Every row is one variant: a kernel
with a dtype, a launch configuration and the switches that change its code, compiled without a GPU. Counts are of
instructions in the code, not of executions.

- **registers**: of one lane (AMD: vector and accumulation registers; where warps are specialised, at the start, before
  they share them out anew). **spilled**: bytes a lane, stored / loaded.
- **shared**: bytes of one block. **resident**: warps on one multiprocessor at once, of {warps}: the least of what its
  registers, shared memory, warps and blocks leave (formula: `minillm_kernels/machine_code.py`); 0: no block fits.
- **matrix**: instructions of the matrix unit: `mma.sync` (HMMA), `wgmma` (HGMMA), `tcgen05` (UTCHMMA), `mfma`.
- **copies**: asynchronous ones to shared memory, `cp.async` (LDGSTS) and `cp.async.bulk` (TMA).
- **loads**, **stores**: of global memory, count x bits of a lane; 128 is the widest.
"""


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as text: a summary of each op and target, then a table for each op."""
    machines = ", ".join(f"{machine_code.MACHINES[target].warps} ({target})" for target in TARGETS)
    parts = [_OPENING.format(triton=report["triton"], warps=machines)]
    ops = [op for op in dispatch.OPS if any(row["op"] == op for row in report["rows"])]
    parts.append("| Op | Target | Variants | Most registers | That spill | Least resident |\n|---|---|---|---|---|---|")
    for op in ops:
        for target in TARGETS:
            found = [row for row in report["rows"] if row["op"] == op and row["target"] == target]
            if found:
                spilling = sum(row["spill_stores"] + row["spill_loads"] > 0 for row in found)
                most = max(row["registers"] for row in found)
                least = min(row["resident_warps"] for row in found)
                parts.append(f"| {op} | {target} | {len(found)} | {most} | {spilling} | {least} |")
    head = "| Variant | Target | Warps | Registers | Spilled | Shared | Resident | Matrix | Copies | Loads | Stores |"
    for op in ops:
        parts += [f"\n## {op}\n", head, "|" + "---|" * 11]
        parts += [_line(row) for row in report["rows"] if row["op"] == op]
    return "\n".join(parts) + "\n"


def _line(row: Row) -> str:
    def counts(name: str) -> str:
        return ", ".join(f"{count} x {kind}" for kind, count in row[name].items()) or "-"

    spilled = f"{row['spill_stores']} / {row['spill_loads']}" if row["spill_stores"] + row["spill_loads"] else "-"
    cells = [row[name] for name in ("variant", "target", "warps", "registers")]
    cells += [spilled, row["shared"], row["resident_warps"]]
    cells += [counts(name) for name in ("matrix", "copies", "loads", "stores")]
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile what was asked for, and write both files."""
    fused = [op for op in dispatch.OPS if op in dispatch.FUSED_OPS]
    about = "Compile every kernel without a GPU, and write down what came out."
    parser = argparse.ArgumentParser(prog="python -m minillm_kernels.compile_report", description=about)
    parser.add_argument("--ops", nargs="+", choices=fused, default=fused, metavar="OP", help=", ".join(fused))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="default: all")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: beside the package")
    asked = parser.parse_args(arguments)
    start = time.perf_counter()
    with compilers() as pool:
        version = pool.submit(triton_version).result()
        found = rows(pool, [job for job in listed(pool, asked.ops) if job[2] in asked.targets])
    record = read_record(asked.out)
    if record.get("triton") != version:
        record = {}  # rows of two compilers do not belong in one table
    report = {"triton": version, "rows": merged(record, found, asked.ops, asked.targets)}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "compile_report.json").write_text(to_json(report), encoding="utf-8")
    (asked.out / "COMPILE_REPORT.md").write_text(to_markdown(report), encoding="utf-8")
    took = time.perf_counter() - start
    print(f"{len(found)} kernels in {took:.0f} s: {asked.out}/COMPILE_REPORT.md", file=sys.stderr)


def triton_version() -> str:
    import triton

    return triton.__version__


if __name__ == "__main__":
    main()
