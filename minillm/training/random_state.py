"""The random generators that a run could draw from, as tensors: a checkpoint keeps them.

What minillm itself draws comes from `Batch.seed` and needs none of them. An objective or a hook of the user's own may
draw from Python's, NumPy's or PyTorch's global generator; with these states it too draws the same after a resume.

Read next: `trainer.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from minillm.errors import InputError


def seed_random(seed: int) -> None:
    """Begin all of these generators anew from a seed in [0, 2**63)."""
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
    torch.manual_seed(seed)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the states of Python's, NumPy's and PyTorch's global generators, that of `device` among them.

    Returns:
        "python", (625,) int64; "python.normal", float64 (1,), or (0,) where no spare one waits; "numpy" and
        "numpy.normal" likewise; "torch.cpu" and, on such a device, "torch.cuda" or "torch.mps", uint8.
    """
    _, numbers, spare = random.getstate()
    state = cast(dict[str, Any], np.random.get_state(legacy=False))
    found = {
        "python": torch.tensor(numbers, dtype=torch.int64),
        "python.normal": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.tensor([*state["state"]["key"].tolist(), state["state"]["pos"]], dtype=torch.int64),
        "numpy.normal": torch.tensor([state["gauss"]] if state["has_gauss"] else [], dtype=torch.float64),
        "torch.cpu": torch.get_rng_state(),
    }
    if device.type == "cuda":
        found["torch.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["torch.mps"] = torch.mps.get_rng_state()
    return found


def put_random_tensors(tensors: Mapping[str, Tensor], device: torch.device, *, source: object) -> None:
    """Give the generators states that `random_tensors` took; a device of another kind keeps its own.

    Raises:
        InputError: a state is missing or is none; the text names `source`.
    """
    try:
        python, numpy = tensors["python"].tolist(), tensors["numpy"].tolist()
        spare, waiting = tensors["python.normal"].tolist(), tensors["numpy.normal"].tolist()
        random.setstate((3, tuple(python), spare[0] if spare else None))
        np.random.set_state(
            {
                "bit_generator": "MT19937",
                "state": {"key": np.array(numpy[:-1], dtype=np.uint32), "pos": numpy[-1]},
                "has_gauss": len(waiting),
                "gauss": waiting[0] if waiting else 0.0,
            }
        )
        torch.set_rng_state(tensors["torch.cpu"])
        if device.type == "cuda" and "torch.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["torch.cuda"], device)
        elif device.type == "mps" and "torch.mps" in tensors:
            torch.mps.set_rng_state(tensors["torch.mps"])
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{source} is damaged: {error}; use another checkpoint") from error


@contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """Give the generators after the block the states that they had before it."""
    before = random_tensors(device)
    try:
        yield
    finally:
        put_random_tensors(before, device, source="the state of a random generator")
