"""How threads wait for each other on a CPU's cores: by spinning for a while, then by giving the core away.

PyTorch's matrix products begin and end together on all threads of OpenMP. One that waits for the others spins, and only
then lets other programs have its core: libgomp's own bound is 300,000 turns, 5 to 15 ms. Where another program is at
work, the thread that is waited for has no core meanwhile, and the one that waits keeps its own to no use.

Tokens a second of `GOMP_SPINCOUNT=TURNS minillm pretrain --preset tiny-encoder --data.input stdlib-docs`, on two cores
of an Intel Xeon with AMX (2026-11-28): alone the median of three runs of 60 steps, in turns; beside a loop in Python
one run of 12.

    turns     alone     beside the loop
    300,000   15,114    269                what libgomp does by itself
    10,000    14,293    3,784
    1,000      9,460    6,951
    0          8,465    7,809              OMP_WAIT_POLICY=passive

Read next: `training/host_memory.py`.
"""

from __future__ import annotations

import os

SPINS = "10000"  # turns of libgomp's loop, 0.2 to 0.7 ms: longer than Python takes from one op to the next


def share_cores() -> None:
    """Let waiting threads give their core away sooner, where the user's environment says nothing of it.

    libgomp, of Linux, reads this when it is loaded, so before torch is imported; others do not know of it. Results do
    not change.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
