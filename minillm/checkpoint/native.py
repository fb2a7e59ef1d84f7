"""Tensors of a model <-> safetensors, by name; a file that does not fit says at which tensor.

Read next: `sharded.py`, then `run_folder.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.checkpoint.files import explained, forget_cached, reason, sync_file
from minillm.checkpoint.sharded import spread_like
from minillm.errors import InputError


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, each tensor once: a tied one under its first name."""
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensor for name, tensor in model.state_dict().items() if name in once}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, named: Path | None = None, safe: str = "") -> None:
    """Write tensors as one safetensors file; equal tensors give equal bytes.

    Args:
        path: where to write; replaced if it exists, so write into a `files.new_folder`.
        tensors: any dtypes and shapes, on any device.
        named: the file as the user knows it, for the error's text; None: `path`.
        safe: what is not lost if this fails.
    Raises:
        InputError: the file cannot be written, or what is read back differs from the tensors.

    Cost: the file's size written, one flush, and the same size read.
    """
    given = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with explained(named or path, safe):
        # one metadata key only: safetensors keeps metadata in a hash map, and two keys could come in either order
        save_file(given, path, metadata={"format": "pt"})
        sync_file(path)
        forget_cached(path)
        try:
            back = load_file(path)
        except SafetensorError as error:  # such as a write that was cut short and said nothing
            raise OSError(errno.EIO, "what is on the disk is no whole safetensors file") from error
        if back.keys() != given.keys() or not all(same_bits(back[name], given[name]) for name in given):
            raise OSError(errno.EIO, "what is on the disk differs from what was written")


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Return whether two tensors on the CPU are the same bit for bit, NaN and signed zero included."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        InputError: no such file, or it is damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; the checkpoint is not whole, use another one") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}; the checkpoint is damaged, use another one") from error


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Copy tensors into the model's own, in place, after checking that all names and shapes agree.

    Args:
        model: keeps its dtypes and devices.
        tensors: as `tensors_of` gives them.
        source: where they came from, for the error's text.
    Raises:
        InputError: the first tensor that differs, with both shapes; the model is then unchanged.
    """
    put_by_name(tensors_of(model), tensors, source=source)


def put_by_name(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Copy tensors into others of the same names and shapes, as `put_tensors` does into those of a model."""
    check_fit(own, tensors, source=source)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(spread_like(tensors[name], tensor))


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Raise InputError at the first tensor that is not in both, or not in one shape; nothing is copied."""
    for name in (*own, *tensors):
        asked, came = own.get(name), tensors.get(name)
        if asked is None or came is None or asked.shape != came.shape:
            raise misfit(source, name, asked=asked, came=came)


def misfit(source: Path | str, name: str, *, asked: Tensor | None, came: Tensor | None) -> InputError:
    """Return the error for a tensor that differs between a model and a file."""

    def shape(tensor: Tensor | None) -> str:
        return "no such tensor" if tensor is None else str(tuple(tensor.shape))

    return InputError(
        f"{source} is of another architecture: the model asks for {name} {shape(asked)}, the file has {shape(came)}; "
        f"use the [model] section that it was trained with"
    )
