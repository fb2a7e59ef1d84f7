"""Every rung of the ladder by the ladder's own oracle, and the script that runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from minillm_kernels.attention.ladder import __main__ as script
from minillm_kernels.attention.ladder.rungs import RUNGS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = [rung for rung in RUNGS if rung.name != "pytorch"]


@pytest.fixture(autouse=True)
def poisoned():
    # fills what torch.empty returns with NaN; on a GPU it would also forbid the oracle's matrix products
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 1, 1, 16), id="one"),
        pytest.param((1, 20, 2, 16), id="ragged"),
        pytest.param((2, 16, 1, 5), id="narrow"),
    ],
)
@pytest.mark.parametrize("rung", OURS, ids=lambda rung: rung.name)
def test_rung_is_as_close_to_truth_as_the_maths(rung, shape, dtype):
    if shape[1] == 1 and rung.has_gradient:
        return  # dq and dk are 0 there: twice an error of 0 is nothing to be measured by
    tensors, dy = script.inputs(*shape, dtype, DEVICE)
    assert script.error(rung, tensors, dy) <= 1


def test_the_oracle_finds_what_is_wrong():
    tensors, dy = script.inputs(1, 5, 1, 16, torch.float32, DEVICE)
    wrong = script.Rung("wrong", lambda q, k, v: RUNGS[0].attention(q, k, v) * (1 + 1e-5))
    assert script.error(wrong, tensors, dy) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="times on a GPU, for minutes")
def test_the_command_checks_and_says_that_timing_needs_a_gpu():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(script.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-m", "minillm_kernels.attention.ladder"],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(rung.name in done.stdout for rung in RUNGS)
    assert "timing needs a GPU" in done.stdout
