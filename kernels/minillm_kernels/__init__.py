"""Transformer ops: one public function each, with a backend chosen by `dispatch.py`. Needs torch; for kernels Triton.

`__all__` lists the ops in reading order, the simplest forward and backward pass first. Every op is a folder:
`__init__.py` holds the public function, `reference.py` the maths by hand, `composed.py` the fastest composition of
PyTorch's own ops, `fused.py` the Triton kernels. Kernels that several ops share stand beside the folders.

Read next: `rms_norm/__init__.py`, then `rms_norm/reference.py`; for kernels `rms_norm/fused.py`.
"""

from minillm_kernels.attention import attention, attention_weights
from minillm_kernels.cross_entropy import cross_entropy
from minillm_kernels.dispatch import Decision, backend, explain_dispatch
from minillm_kernels.dropout import dropout
from minillm_kernels.embedding import embedding
from minillm_kernels.geglu import geglu
from minillm_kernels.gelu import gelu
from minillm_kernels.layer_norm import layer_norm
from minillm_kernels.linear_cross_entropy import linear_cross_entropy
from minillm_kernels.relu import relu
from minillm_kernels.relu2 import relu2
from minillm_kernels.rms_norm import rms_norm
from minillm_kernels.rotary import rotary
from minillm_kernels.swiglu import swiglu

__all__ = [
    "rms_norm",
    "layer_norm",
    "relu",
    "gelu",
    "relu2",
    "swiglu",
    "geglu",
    "rotary",
    "dropout",
    "embedding",
    "attention",
    "attention_weights",
    "cross_entropy",
    "linear_cross_entropy",
    "backend",
    "explain_dispatch",
    "Decision",
]
