"""All registrations, in the reading order of the ops, and the order in which they are measured.

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
# What a model's step spends most time in: where the clock cuts, others are left. These come first, the rest follows.
FIRST = (
    "attention_causal",
    "linear_cross_entropy",
    "layer_norm",
    "attention_full",
    "layer_norm_residual",
    "gelu",
    "cross_entropy",
    "rms_norm",
    "rms_norm_residual",
    "swiglu",
    "rotary",
    "embedding",
    "gelu_bias_dropout",
    "dropout",
    "attention_decode",
)
