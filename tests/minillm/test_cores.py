"""Waiting threads give their core away soon, unless the user's environment says how long they wait."""

import os
import subprocess
import sys

import pytest

from minillm.cores import SPINS


def libgomp_says(**environment):
    """Return what libgomp shows of its settings when the command line has loaded it, in a process of its own."""
    kept = {name: v for name, v in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "minillm", "kernels"],
        env={**kept, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "environment, spins",
    [
        pytest.param({}, SPINS, id="nothing said"),
        pytest.param({"GOMP_SPINCOUNT": "77"}, "77", id="turns said"),
        pytest.param({"OMP_WAIT_POLICY": "PASSIVE"}, "0", id="policy said"),
    ],
)
def test_libgomp_is_told_before_it_is_loaded(environment, spins):
    said = libgomp_says(**environment)
    if sys.platform == "linux":  # where PyTorch brings libgomp
        assert f"GOMP_SPINCOUNT = '{spins}'" in said
