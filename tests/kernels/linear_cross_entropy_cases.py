"""Inputs of linear_cross_entropy, and what its tests are run over."""

from typing import Any

import minillm_kernels as mk
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = ["torch", "reference", "fused"]
REDUCTIONS = ["sum", "mean", "none"]
NAME_AND_DTYPE = [pytest.param(name, dtype, id=f"{name}-{dtype}") for name in ("torch", "fused") for dtype in DTYPES]


def tensors(rows, C, V, *, bias=True) -> dict[str, Any]:
    """Return inputs on the device, of which every third target is ignored (with one row alone: none)."""
    torch.manual_seed(0)
    targets = torch.randint(V, rows)
    targets.view(-1)[1::3] = -100
    made = {"hidden": torch.randn(*rows, C), "weight": torch.randn(V, C), "targets": targets}
    made |= {"bias": torch.randn(V)} if bias else {}
    return {key: tensor.to(DEVICE) for key, tensor in made.items()}


def product_then_loss(hidden, weight, targets, bias=None, **options):
    """Return the definition, which holds all the logits."""
    logits = hidden @ weight.T
    return mk.cross_entropy(logits if bias is None else logits + bias, targets, **options)
