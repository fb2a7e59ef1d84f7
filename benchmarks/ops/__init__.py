"""All registrations, in the reading order of the ops.

Read next: `registration.py`, then `norms.py`.
"""

from __future__ import annotations

from benchmarks.ops.attention import ATTENTION
from benchmarks.ops.losses import LOSSES
from benchmarks.ops.norms import NORMS
from benchmarks.ops.pointwise import POINTWISE
from benchmarks.ops.registration import OpBenchmark
from benchmarks.ops.tables import TABLES

BENCHMARKS: dict[str, OpBenchmark] = {b.name: b for b in (*NORMS, *POINTWISE, *TABLES, *ATTENTION, *LOSSES)}
