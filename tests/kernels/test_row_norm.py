"""The launches of the norms' kernels: what the compilers' record and machine code say of them."""

import os
import subprocess
import sys

import pytest
from minillm_kernels import compile_report, row_norm

pytest.importorskip("triton", reason="there is no Triton for this system")

# In a process that does not interpret kernels: what nvdisasm makes of one of them for sm_90.
MACHINE_CODE = """
import subprocess, sys, tempfile
import triton
from minillm_kernels import compile_report, row_norm
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

variant = next(v for v in row_norm.variants("layer_norm", True) if v.name == sys.argv[1])
attributes = compile_report._attributes(variant)
source = ASTSource(variant.kernel, dict(variant.signature), dict(variant.constants), attributes)
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": variant.num_warps})
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(kernel.asm["cubin"])
    file.flush()
    subprocess.run([knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name], check=True)
"""


@pytest.mark.parametrize("switch", ["plain", "HAS_BIAS", "HAS_DS", "HAS_DROPOUT"])
def test_the_next_tiles_copies_are_on_their_way_while_one_is_worked_on(switch):
    """Before a tile is read there is no wait for all copies, but for all save those of the tile that follows."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(compile_report.FOLDER)
    run = [sys.executable, "-c", MACHINE_CODE, f"backward torch.bfloat16 C=1024 {switch}"]
    sass = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    waits = [line.split("SB0,")[1].split()[0] for line in sass.splitlines() if "DEPBAR.LE SB0" in line]
    tensors = 5 if switch in ("HAS_DS", "HAS_DROPOUT") else 4  # dy, s, mean, rstd, and ds or the seed
    assert waits == [hex(tensors), "0x0"]  # in the loop, and after it


@pytest.mark.parametrize("width", [128, 1024, 4096])
def test_no_program_of_the_backward_pass_waits_for_a_turn(width):
    """As many programs as are launched are resident on NVIDIA's multiprocessors."""
    recorded = compile_report.read_record()["rows"]
    rows = [r for r in recorded if f"C={width}" in r["variant"] and r["variant"].startswith("backward torch.")]
    assert len(rows) >= 18
    for row in rows:
        if row["target"].startswith("sm_"):
            at_work = row_norm.threads_per_sm("HAS_BIAS" in row["variant"], "HAS_DROPOUT" in row["variant"])
            programs = row["resident_warps"] // row["warps"]
            assert programs >= -(-at_work // (32 * row["warps"])), (row["op"], row["variant"], row["target"])
