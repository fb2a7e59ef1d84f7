"""Compile for one GPU, without one, just what the benchmark launches: every op at its own sizes, both directions.

    python tests/benchmarks/launched.py FILE

The public ops are called on CPU tensors that nobody fills, and each launch is compiled in place of being run: so tiles,
types, strides and what is divisible by 16 are those of the real call. The compile report has the launch tables instead.
It is a program of its own because a process that interprets kernels does not compile.
"""

import contextlib
import io
import json
import math
import sys
from pathlib import Path

import minillm_kernels as mk
import torch
from minillm_kernels import compile_report, dispatch, launching, machine_code
from minillm_kernels.linear_cross_entropy import chunks

from benchmarks.ops import BENCHMARKS, scaling
from benchmarks.ops.registration import Source, in_tuple, leaves_of

if __name__ == "__main__":  # pytest looks into this file for doctests, perhaps where there is no Triton
    from minillm_kernels import elementwise, row_norm
    from minillm_kernels.attention import configs
    from minillm_kernels.linear_cross_entropy import fused as linear_cross_entropy
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
ROWS = {}
now = ""


class Driver:
    """A driver of a GPU that is not there: what Triton asks of it before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def compiled(self, *arguments, grid, warmup, **options):
    """In place of JITFunction.run."""
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        kernel = own_run(self, *arguments, grid=grid, warmup=True, **options)
    if kernel.hash not in ROWS:
        row = {"op": now, "variant": kernel.metadata.name, "target": "sm_90", "shared": kernel.metadata.shared}
        row |= compile_report._resources(kernel, "cuda", log.getvalue())
        row["resident_warps"] = machine_code.resident_warps(
            machine_code.MACHINES["sm_90"], row["registers"], row["shared"], kernel.metadata.num_warps, 0
        )
        ROWS[kernel.hash] = row


def call(benchmark, dims, direction):
    """Call an op once, forward or both ways."""
    if benchmark.name == "linear_cross_entropy":  # its products would take minutes: only what is done with a chunk
        R, V, C = dims["R"], dims["V"], dims["C"]
        budget = chunks.default_budget("cuda", R, chunks.padded(V, True), C, DTYPE.itemsize)
        most = chunks.rows_per_chunk(budget, V, DTYPE, None, True)
        rows = math.ceil(R / math.ceil(R / most))
        logits = torch.empty(rows, V + -V % chunks.ALIGNMENT, dtype=DTYPE)[:, :V]
        targets, options = torch.zeros(rows, dtype=torch.int64), (-100, 0.0, 0.0, None)
        linear_cross_entropy.losses_and_dlogits(logits, targets, None, options, direction != "forward")
        return
    tensors = benchmark.inputs(dims, DTYPE, Source(CPU))
    leaves = leaves_of(benchmark, tensors)
    for leaf in leaves.values():
        leaf.requires_grad_(direction != "forward")
    with mk.backend("fused"), torch.set_grad_enabled(direction != "forward"):
        outputs = in_tuple(benchmark.call(tensors, dims))
        if direction != "forward":
            torch.autograd.grad(outputs, list(leaves.values()), [torch.empty_like(y) for y in outputs])


if __name__ == "__main__":
    own_run, JITFunction.run = JITFunction.run, compiled
    driver.set_active(Driver())
    dispatch.INTERPRETED = True  # else the ops take a CPU's reference
    configs.device_class = lambda device: "sm_90"
    for module in (launching, row_norm, elementwise):
        module.num_sms = lambda device: 132
    Source.normal = lambda self, *shape, dtype: torch.empty(shape, dtype=dtype)
    cases = [(b, shape) for b in BENCHMARKS.values() for shape in b.shapes["cuda"]]
    cases += [(BENCHMARKS[sweep.op], shape) for sweep in scaling.SWEEPS for shape in sweep.shapes["cuda"]]
    for benchmark, shape in cases:
        for dims in (shape.dims, {**shape.dims, **shape.check}):
            for direction in benchmark.directions:
                now = f"{benchmark.name}, {shape.name}, {direction}"
                call(benchmark, dims, direction)
    Path(sys.argv[1]).write_text(json.dumps(list(ROWS.values())))
