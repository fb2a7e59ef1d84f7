"""How threads wait for each other on a CPU's cores: by spinning for a while, then by giving the core away.

PyTorch's matrix products begin and end together on all threads of OpenMP. One that waits for the others spins, and only
then lets other programs have its core: libgomp's own bound is 300,000 turns, 5 to 15 ms. Where another program is at
work, the thread that is waited for has no core meanwhile, and the one that waits keeps its own to no use.

Tokens a second of `tiny-encoder` on two cores (an Intel Xeon with AMX, 2026-11-28), in turns:

    turns            nothing else runs    a loop in Python runs beside it
    300,000          18,034               970
    10,000           17,320               4,400
    1,000            10,700               8,800
    0, asleep        9,300                10,500

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
