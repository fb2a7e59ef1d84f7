"""What the benchmark launches on a GPU, at its own sizes, compiles for it; without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minillm_kernels import compile_report

from benchmarks.ops import BENCHMARKS

pytest.importorskip("triton", reason="there is no Triton for this system")
ROOT = Path(__file__).parents[2]
MOST_SPILLED = 64  # bytes a lane, as the compile report's tests allow attention


@pytest.mark.slow
def test_every_launch_of_the_benchmark_compiles_for_hopper_and_fits(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "tests/benchmarks/launched.py"), str(tmp_path / "rows")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows").read_text())
    assert {row["op"].split(",")[0] for row in rows} >= {"attention_causal", "layer_norm", "linear_cross_entropy"}
    assert len(rows) >= 4 * len(BENCHMARKS)
    products = ("attention_forward", "dk_dv", "dq", "decode")
    faults = [compile_report.complaint(r, any(p in r["variant"] for p in products), MOST_SPILLED) for r in rows]
    assert [fault for fault in faults if fault] == []
